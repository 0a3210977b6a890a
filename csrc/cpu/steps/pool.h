// What pooling steps share: windows that are clipped to the image.
#pragma once
#include "../../core/padding.h"
#include "../pool.h"
#include "step.h"

namespace qk {

#define QK_POOL(F)                                                                           \
  F(int32_t, kh, 1) F(int32_t, kw, 1) F(int32_t, stride_h, 1) F(int32_t, stride_w, 1)        \
  F(int32_t, pad_h, 0) F(int32_t, pad_w, 0) F(uint8_t, ceil_mode, 0)

// The window of a payload, as a problem without sizes.
template <class Payload>
Pool2dProblem window_of(const Payload& s) {
  Pool2dProblem p;
  p.kh = s.kh, p.kw = s.kw, p.stride_h = s.stride_h, p.stride_w = s.stride_w, p.pad_h = s.pad_h, p.pad_w = s.pad_w;
  return p;
}

inline const char* check_pool(const StepCheck& c, const Pool2dProblem& window) {
  if (c.x.rank != 4 || c.x.channels < 1 || c.x.planar || c.y.rank != 4 || c.y.planar) return "it reads or writes no image";
  if (const char* why = check_window(window)) return why;
  if (window.pad_h < 0 || window.pad_w < 0 || window.pad_h * 2 > window.kh || window.pad_w * 2 > window.kw)
    return "its padding is negative or more than half of its window";
  return c.y.channels == c.x.channels ? nullptr : "its output has other channels";
}

inline std::string pool_shape(const StepCall& call, const Pool2dProblem& p, bool ceil_mode, ProgramShape& y) {
  const ProgramShape& x = call.x_shape();
  const int64_t h = x.h + 2 * p.pad_h, w = x.w + 2 * p.pad_w;
  if (std::string why = check_extent(p, h, w); !why.empty()) return why;
  y.h = pooled(x.h, p.kh, p.stride_h, p.pad_h, p.dilation_h, ceil_mode);
  y.w = pooled(x.w, p.kw, p.stride_w, p.pad_w, p.dilation_w, ceil_mode);
  return double(x.n) * double(h) * double(w) * double(x.c) > kMaxElements ? too_large(call) : std::string();
}

inline void run_pool(const StepCall& call, Pool2dProblem p, const Parallel& parallel) {
  const ProgramShape &x = call.x_shape(), &y = call.y_shape();
  p.batch = x.n, p.h = x.h, p.w = x.w, p.c = x.c, p.oh = y.h, p.ow = y.w;
  p.type = call.y().type, p.mask = call.mask, p.x = call.data(call.read(0)), p.y = call.data(call.step.y);
  pool2d(p, call.isa, parallel);
}

}  // namespace qk
