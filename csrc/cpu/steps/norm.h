// What normalizations share: an epsilon, and a weight and a bias for every channel.
#pragma once
#include "../norms.h"
#include "operand.h"

namespace qk {

#define QK_NORM(F)                                                                           \
  F(Constant, weight, Constant())  /* f32, one a channel */                                  \
  F(float, epsilon, 0.0f) QK_X(F) QK_OUTPUT(F)

template <class Payload>
const char* check_norm(const StepCheck& c, const Payload& p) {
  if (const char* why = check_x_and_y(c, p)) return why;
  if (c.x.channels < 1 || c.y.channels != c.x.channels) return "its output has other channels, or none that are known";
  if (!c.holds(p.weight, c.x.channels * int64_t(4))) return "its weight lies outside";
  return p.epsilon >= 0.0f && std::isfinite(p.epsilon) ? nullptr : "its epsilon is not finite and at least 0";
}

// A problem of rows, less its bias.
template <class Payload>
LayerNormProblem row_norm(const StepCall& call, const Payload& s) {
  const ProgramShape& x = call.x_shape();
  LayerNormProblem p;
  p.rows = x.n * x.h * x.w, p.c = x.c;
  p.x = operand_of(call, 0, s.x_scale, s.x_zero);
  p.weight = call.constant<float>(s.weight);
  p.epsilon = s.epsilon;
  p.y = call.data(call.step.y);
  p.epilogue = output_of(call, s);
  return p;
}

}  // namespace qk
