// What steps share that read float32 or int8 of a scale, of any sizes, and write either.
#pragma once
#include <algorithm>

#include "step.h"

namespace qk {

constexpr double kMaxReduced = 1 << 23;  // pixels that are added: as many int8 stay within int32

#define QK_X(F) F(float, x_scale, 1.0f) F(int32_t, x_zero, 0)
#define QK_CLAMP(F)                                                                          \
  F(float, lo, -std::numeric_limits<float>::infinity()) F(float, hi, std::numeric_limits<float>::infinity())

// Why the i-th value that a step reads is none that lies there, contiguous, as numbers.
inline const char* check_operand(const StepCheck& c, int i) {
  const int32_t v = c.step.reads[i];
  if (v < 0) return "it reads fewer values than its kind";
  const ProgramValue& value = c.program.values[v];
  if (c.lies_anywhere(v)) return "it reads an input whose pixels may lie anywhere";
  if (value.planar || value.border) return "it reads a value that is planar or has a border";
  return value.type == DType::f32 || value.type == DType::s8 ? nullptr : "it reads what is neither float32 nor int8";
}

inline const char* check_scale(float scale, int32_t zero) {
  return is_scale(scale) && within(zero, -128, 127) ? nullptr : "a scale is not finite and above 0, or a zero point outside [-128, 127]";
}

// Why a step with fields QK_X and QK_OUTPUT, which reads one value, may not run.
template <class Payload>
const char* check_x_and_y(const StepCheck& c, const Payload& p) {
  if (const char* why = check_operand(c, 0)) return why;
  if (c.y.planar) return "its output is planar";
  if (const char* why = check_scale(p.x_scale, p.x_zero)) return why;
  return check_output(p);
}

template <class Payload>
const char* check_clamp(const Payload& p) { return p.lo <= p.hi ? nullptr : "its clamp is empty"; }

inline Operand operand_of(const StepCall& call, int i, float scale, int32_t zero) {
  const int32_t v = call.read(i);
  return {call.data(v), call.value(v).type, call.mask_of(call.value(v)), scale, zero};
}

template <class Payload>
Epilogue clamped_output_of(const StepCall& call, const Payload& p) {
  Epilogue e = output_of(call, p);
  e.lo = p.lo, e.hi = p.hi;
  return e;
}

// Why y, whose rank and channels are fixed, has no such sizes.
inline std::string fitting(const StepCall& call, const ProgramShape& y) {
  const ProgramValue& v = call.y();
  if (v.channels && v.channels != y.c) return sentence("its output has ", v.channels, " channels, but its input gives ", y.c);
  if ((v.rank < 4 && y.w != 1) || (v.rank < 3 && y.h != 1))
    return sentence("its output has rank ", int(v.rank), ", but its input gives ", y.h, "x", y.w, "x", y.c);
  return {};
}

inline std::string same_sizes(const StepCall& call, ProgramShape& y) {
  y = call.x_shape();
  return fitting(call, y);
}

}  // namespace qk
