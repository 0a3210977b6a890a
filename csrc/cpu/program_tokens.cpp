#include "program_tokens.h"

#include <cmath>

namespace qk {
namespace {

bool has_floats(const Program& program, int64_t at, int64_t count) {
  return at > 0 && at % 64 == 0 && at <= program.header->bytes - 4 * count;
}

const char* check_output(const ProgramStep& s) {
  const bool scale = s.out_inv_scale > 0.0f && std::isfinite(s.out_inv_scale) && std::isfinite(1.0f / s.out_inv_scale);
  return scale && s.out_zero >= -128 && s.out_zero <= 127 ? nullptr : "its output has no scale or zero point";
}

Epilogue output_of(const Program& program, const ProgramStep& s, int8_t mask) {
  Epilogue e;
  e.out_type = program.values[s.y].type;
  e.out_inv_scale = s.out_inv_scale;
  e.out_zero = s.out_zero;
  e.out_mask = mask;
  return e;
}

}  // namespace

const char* check_layer_norm(const Program& program, const ProgramStep& s) {
  const ProgramValue &x = program.values[s.x], &y = program.values[s.y];
  if (x.type != DType::f32 || x.rank == 4 || x.channels < 1) return "it normalizes no float32 rows";
  if (y.rank != x.rank || y.channels != x.channels) return "its output has other sizes";
  if (s.weight_bytes != x.channels * int64_t(4) || !has_floats(program, s.weight, x.channels) || !has_floats(program, s.bias, x.channels))
    return "its weight or bias lies outside";
  if (!(s.parameter >= 0.0f) || !std::isfinite(s.parameter)) return "its epsilon is not finite and at least 0";
  return check_output(s);
}

const char* check_attention(const Program& program, const ProgramStep& s) {
  const ProgramValue &x = program.values[s.x], &y = program.values[s.y];
  if (x.type != DType::f32 || x.rank != 3 || y.rank != 3) return "it reads or writes no tokens";
  if (y.channels < 1 || x.channels != int64_t(3) * y.channels) return "its input is not three times as wide as its output";
  if (s.groups < 1 || y.channels % s.groups) return "its heads do not divide its channels";
  if (!(s.parameter > 0.0f) || !std::isfinite(s.parameter)) return "the factor of its scores is not finite and above 0";
  return check_output(s);
}

LayerNormProblem layer_norm_problem(const Program& program, const ProgramStep& s, const ProgramShape& shape, const void* x, void* y, int8_t mask) {
  LayerNormProblem p;
  p.rows = shape.n * shape.h * shape.w, p.c = shape.c;
  p.x = static_cast<const float*>(x);
  p.weight = reinterpret_cast<const float*>(program.base + s.weight);
  p.bias = reinterpret_cast<const float*>(program.base + s.bias);
  p.epsilon = s.parameter;
  p.y = y;
  p.epilogue = output_of(program, s, mask);
  return p;
}

AttentionProblem attention_problem(const Program& program, const ProgramStep& s, const ProgramShape& shape, const void* x, void* y, int8_t mask) {
  AttentionProblem p;
  p.batch = shape.n, p.tokens = shape.h, p.heads = s.groups, p.width = shape.c / 3 / s.groups;
  p.x = static_cast<const float*>(x);
  p.exponent = s.parameter;
  p.y = y;
  p.epilogue = output_of(program, s, mask);
  return p;
}

}  // namespace qk
