// Every stride-th pixel of an image, with a border around it, at a channel of y: padding, slices and joins of channels.
#include "../move.h"
#include "step.h"

namespace qk {
namespace {

#define QK_COPY(F)                                                                           \
  F(int32_t, stride_h, 1) F(int32_t, stride_w, 1)                                            \
  F(int32_t, pad_top, 0) F(int32_t, pad_bottom, 0) F(int32_t, pad_left, 0) F(int32_t, pad_right, 0) \
  F(int32_t, channel, 0)       /* of y, where x goes */                                      \
  F(int32_t, fill_value, 0)    /* of an int8 y; float32 is filled with 0 */                  \
  F(uint8_t, fill, 0)          /* 1 writes what x does not cover, 0 leaves what another step has written */
QK_RECORD(Payload, QK_COPY);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (!are_images(c)) return "it reads or writes no image";
  if (p.stride_h < 1 || p.stride_w < 1) return "its window is empty";
  if (p.pad_top < 0 || p.pad_bottom < 0 || p.pad_left < 0 || p.pad_right < 0) return "its padding is negative";
  if (!within(p.fill, 0, 1) || (p.fill == 0) != c.written) return "it writes a value that exists already, or a part of none";
  if (!within(p.fill_value, -128, 127)) return "it fills with what is no int8";
  return p.channel >= 0 && int64_t(p.channel) + c.x.channels <= c.y.channels ? nullptr : "it copies beyond its output";
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const Payload& p = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  y.h = ceil_div(x.h, p.stride_h) + p.pad_top + p.pad_bottom;
  y.w = ceil_div(x.w, p.stride_w) + p.pad_left + p.pad_right;
  const ProgramShape& before = call.y_shape();
  if (!p.fill) y.join_axis = before.join_axis, y.joined = before.joined;
  if (p.fill || (before.h == y.h && before.w == y.w && before.n == y.n)) return {};
  return sentence("what it joins is ", before.h, "x", before.w, " and ", y.h, "x", y.w);
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape &x = call.x_shape(), &y = call.y_shape();
  CopyProblem p;
  p.batch = x.n, p.h = x.h, p.w = x.w, p.c = x.c, p.oh = y.h, p.ow = y.w, p.oc = y.c;
  p.stride_h = s.stride_h, p.stride_w = s.stride_w, p.channel = s.channel;
  p.pad_top = s.pad_top, p.pad_left = s.pad_left, p.pad_bottom = s.pad_bottom, p.pad_right = s.pad_right;
  p.fill = s.fill, p.fill_value = int8_t(s.fill_value) ^ call.mask, p.type = call.y().type;
  p.x = call.data(call.read(0)), p.y = call.data(call.step.y);
  copy(p, parallel);
}

}  // namespace

const StepType copy_step{.name = "copy", .payload = kPayload<Payload>, .joins = true,
                         .check = check, .shape = shape, .run = run};

}  // namespace qk
