// What convolutions and linear layers share in a program: int8 weights, the range of x, a residual, a clamp.
#pragma once
#include <algorithm>

#include "step.h"

namespace qk {

// The residual is the second value that the step reads.
#define QK_PRODUCT(F)                                                                        \
  F(Constant, weight, Constant())   /* packed, core/layout.h */                              \
  F(Constant, w_scale, Constant())  /* f32, one a channel of y */                            \
  F(Constant, bias, Constant())     /* f32, one a channel of y, or none */                   \
  F(float, x_scale, 1.0f) F(int32_t, x_zero, 0)                                              \
  F(float, residual_scale, 1.0f) F(int32_t, residual_zero, 0)                                \
  F(float, lo, -std::numeric_limits<float>::infinity()) F(float, hi, std::numeric_limits<float>::infinity()) \
  QK_OUTPUT(F)                                                                               \
  F(Range, range, Range::given)                                                              \
  F(Function, activation, Function::identity)  /* behind the residual, before the clamp */   \
  F(float, parameter, 1.0f)         /* of the activation */

inline const char* check_residual(const StepCheck& c) {
  const int32_t v = c.step.reads[1];
  if (v < 0) return nullptr;
  if (c.lies_anywhere(v)) return "it adds an input whose pixels may lie anywhere";
  const ProgramValue& r = c.program.values[v];
  return r.rank == c.y.rank && r.channels == c.y.channels && !r.planar && !r.border ? nullptr : "it adds a value of other sizes";
}

// Why the residual's sizes are not those of y.
inline std::string residual_shape(const StepCall& call, const ProgramShape& y) {
  if (call.read(1) < 0) return {};
  const ProgramShape& r = call.shape(call.read(1));
  if (call.y().rank == 3 && r.h != y.h) return sentence("it adds ", r.h, " tokens to ", y.h);
  if (r.n == y.n && r.h == y.h && r.w == y.w) return {};
  return sentence("it adds an image of ", r.h, "x", r.w, " to one of ", y.h, "x", y.w);
}

template <class Payload>
const char* check_product(const StepCheck& c, const Payload& p, const PackedLayout& layout) {
  if (!c.holds(p.weight, layout.bytes()) || !layout.matches(c.at<int8_t>(p.weight), p.weight.bytes))
    return "its weight is not packed as its sizes ask for";
  const int64_t bytes = c.y.channels * int64_t(4);
  if (!c.holds(p.w_scale, bytes) || ((p.bias.at || p.bias.bytes) && !c.holds(p.bias, bytes))) return "its scales or bias lie outside";
  if (!are_scales(c.at<float>(p.w_scale), c.y.channels)) return "a weight scale is not finite and above 0";
  if (!within(int(p.range), 0, 2) || (c.x.type == DType::s8 && p.range != Range::given)) return "it has no range for its input";
  if (!is_scale(p.x_scale) || !is_scale(p.residual_scale) || !is_scale(p.out_inv_scale)) return "a scale is not finite and above 0";
  for (int32_t zero : {p.x_zero, p.residual_zero, p.out_zero})
    if (!within(zero, -128, 127)) return "a zero point is outside [-128, 127]";
  if (!within(int(p.activation), 0, kFunctions - 1) || !std::isfinite(p.parameter)) return "its activation or that one's parameter is none that is known";
  return p.lo <= p.hi ? check_residual(c) : "its clamp is empty";
}

template <class Payload>
Epilogue product_epilogue(const StepCall& call, const Payload& p, int64_t rows) {
  Epilogue e = output_of(call, p);
  e.x_scale = &p.x_scale;
  e.x_zero = &p.x_zero;
  e.rows_per_scale = std::max<int64_t>(rows, 1);
  e.w_scale = call.constant<float>(p.w_scale);
  e.bias = call.constant<float>(p.bias);
  if (const int32_t residual = call.read(1); residual >= 0) {
    e.residual = call.data(residual);
    e.residual_type = call.value(residual).type;
    e.residual_mask = call.mask;
    e.residual_stride = call.y().channels;
    e.residual_scale = p.residual_scale;
    e.residual_zero = p.residual_zero;
  }
  e.activation = p.activation, e.parameter = p.parameter;
  e.lo = p.lo, e.hi = p.hi;
  return e;
}

}  // namespace qk
