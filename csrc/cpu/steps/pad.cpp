// An image with a border of its own pixels: mirrored, repeated or taken from the other side. Zeros are what `copy` pads with.
#include <algorithm>

#include "../../core/padding.h"
#include "resize.h"

namespace qk {
namespace {

#define QK_PAD(F)                                                                            \
  F(PadMode, pad_mode, PadMode::reflect)                                                     \
  F(int32_t, pad_top, 0) F(int32_t, pad_bottom, 0) F(int32_t, pad_left, 0) F(int32_t, pad_right, 0)
QK_RECORD(Payload, QK_PAD);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (!are_images(c) || c.y.channels != c.x.channels) return "it reads or writes no image";
  const bool good = p.pad_top >= 0 && p.pad_bottom >= 0 && p.pad_left >= 0 && p.pad_right >= 0 && within(int(p.pad_mode), 1, 3);
  return good ? nullptr : "its padding is negative or of no mode";
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const Payload& p = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  if (!fits(p.pad_mode, std::max(p.pad_top, p.pad_bottom), x.h) || !fits(p.pad_mode, std::max(p.pad_left, p.pad_right), x.w))
    return sentence("its padding does not fit an image of ", x.h, "x", x.w);
  y.h = x.h + p.pad_top + p.pad_bottom, y.w = x.w + p.pad_left + p.pad_right;
  return {};
}

void set_axis(int64_t before, int64_t in, int64_t out, PadMode mode, Tap* taps) {
  for (int64_t i = 0; i < out; ++i) taps[i].first = source_index(i - before, in, mode);
}

void run(const StepCall& call, const void*, const Parallel& parallel, void* workspace) {
  const Payload& p = call.payload<Payload>();
  const ProgramShape &x = call.x_shape(), &y = call.y_shape();
  run_resize(call, false, parallel, workspace, [&](Tap* rows, Tap* columns) {
    set_axis(p.pad_top, x.h, y.h, p.pad_mode, rows);
    set_axis(p.pad_left, x.w, y.w, p.pad_mode, columns);
  });
}

}  // namespace

const StepType pad_step{.name = "pad", .payload = kPayload<Payload>, .check = check, .shape = shape, .plan = taps_bytes, .run = run};

}  // namespace qk
