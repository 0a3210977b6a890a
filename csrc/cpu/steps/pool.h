// What pooling steps share: windows that are clipped to the image.
#pragma once
#include "../../core/padding.h"
#include "../pool.h"
#include "step.h"

namespace qk {

#define QK_POOL(F) QK_WINDOW(F) F(int32_t, pad_h, 0) F(int32_t, pad_w, 0) F(uint8_t, ceil_mode, 0)

template <class Payload>
const char* check_pool(const StepCheck& c, const Payload& p) {
  if (!are_images(c)) return "it reads or writes no image";
  if (const char* why = check_window(p)) return why;
  if (p.pad_h < 0 || p.pad_w < 0 || p.pad_h * int64_t(2) > p.kh || p.pad_w * int64_t(2) > p.kw) return "its padding is negative or more than half of its window";
  return c.y.channels == c.x.channels ? nullptr : "its output has other channels";
}

template <class Payload>
std::string pool_shape(const StepCall& call, ProgramShape& y) {
  const Payload& p = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  const int64_t h = x.h + 2 * int64_t(p.pad_h), w = x.w + 2 * int64_t(p.pad_w);
  if (std::string why = check_extent(p, h, w); !why.empty()) return why;
  y.h = pooled(x.h, p.kh, p.stride_h, p.pad_h, p.dilation_h, p.ceil_mode);
  y.w = pooled(x.w, p.kw, p.stride_w, p.pad_w, p.dilation_w, p.ceil_mode);
  return double(x.n) * double(h) * double(w) * double(x.c) > kMaxElements ? too_large(call) : std::string();
}

template <class Payload>
Pool2dProblem pool_problem(const StepCall& call) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape &x = call.x_shape(), &y = call.y_shape();
  Pool2dProblem p;
  p.batch = x.n, p.h = x.h, p.w = x.w, p.c = x.c, p.oh = y.h, p.ow = y.w;
  p.kh = s.kh, p.kw = s.kw, p.stride_h = s.stride_h, p.stride_w = s.stride_w;
  p.pad_h = s.pad_h, p.pad_w = s.pad_w, p.dilation_h = s.dilation_h, p.dilation_w = s.dilation_w;
  p.type = call.y().type, p.mask = call.mask, p.x = call.data(call.read(0)), p.y = call.data(call.step.y);
  return p;
}

}  // namespace qk
