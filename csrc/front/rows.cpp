#include <algorithm>
#include <cmath>

#include "problems.h"

namespace qk {
namespace {

int64_t columns(const char* what, const Array& x) {
  check(x.axes >= 1, what, " has no axis; give it at least one");
  check(x.contiguous, what, " must be contiguous");
  return x.last();
}

int64_t rows_of(const Array& x) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.axes; ++i) rows *= x.sizes[i];
  return rows;
}

// Scales of rows: one for all, or one a row. Returns rows per scale.
int64_t rows_per_scale(const Array& scale, int64_t rows) {
  const int64_t count = scale.count();
  check(count == 1 || count == rows, "scale has ", count, " values; 1 or the number of rows, ", rows, ", is needed");
  return count == 1 ? std::max<int64_t>(rows, 1) : 1;
}

QuantizeProblem float_rows(const Array& x) {
  QuantizeProblem p;
  p.x_type = supported("x", x.type);
  check_type(p.x_type != DType::s8, "x is int8 already");
  p.cols = columns("x", x);
  p.rows = rows_of(x);
  p.x = x.data;
  return p;
}

}  // namespace

QuantizeProblem quantize_problem(const Array& x, const Array& scale, const Array& zero_point) {
  QuantizeProblem p = float_rows(x);
  p.rows_per_scale = rows_per_scale(scale, p.rows);
  p.scale = const_cast<float*>(scales_of("scale", scale, scale.count(), x));
  p.zero = const_cast<int32_t*>(zero_points_of("zero_point", zero_point, scale.count(), x));
  return p;
}

QuantizeProblem quantize_dynamic_problem(const Array& x, bool per_row, bool symmetric) {
  QuantizeProblem p = float_rows(x);
  p.range = symmetric ? Range::dynamic_symmetric : Range::dynamic_asymmetric;
  p.rows_per_scale = per_row ? 1 : std::max<int64_t>(p.rows, 1);
  return p;
}

DequantizeProblem dequantize_problem(const Array& q, const Array& scale, const Array& zero_point, const Type& dtype) {
  check_type(q.type.element == Element::s8, "q is ", q.type.name, "; it must be int8");
  DequantizeProblem p;
  p.cols = columns("q", q);
  p.rows = rows_of(q);
  p.y_type = supported("dtype", dtype);
  check_type(p.y_type != DType::s8, "dtype is int8; choose a float dtype");
  p.rows_per_scale = rows_per_scale(scale, p.rows);
  p.scale = scales_of("scale", scale, scale.count(), q);
  p.zero = zero_points_of("zero_point", zero_point, scale.count(), q);
  p.q = q.as<int8_t>();
  return p;
}

LookupProblem lookup_problem(const Array& x, const Array& table) {
  check_type(x.type.element == Element::s8, "x is ", x.type.name, "; it must be int8");
  check_beside("table", table, x);
  check_type(table.type.element == Element::s8, "table is ", table.type.name, " ", shown(table), "; it must be contiguous int8 [256]");
  check(table.contiguous && table.count() == 256, "table is ", table.type.name, " ", shown(table), "; it must be contiguous int8 [256]");
  LookupProblem p;
  p.count = x.count();
  p.table = table.as<int8_t>();
  p.x = x.as<int8_t>();
  return p;
}

LayerNormProblem layer_norm_problem(const Array& x, const Array& weight, const Array& bias, double epsilon, const EpilogueArgs& args) {
  check_type(x.type.element == Element::f32, "x is ", x.type.name, "; it must be float32");
  check(x.axes == 2 && x.sizes[1] >= 1 && x.contiguous, "x is ", shown(x), "; it must be contiguous [rows, C]");
  LayerNormProblem p;
  p.rows = x.sizes[0], p.c = x.sizes[1];
  check(weight.count() == p.c && bias.count() == p.c, "weight has ", weight.count(), " values and bias ", bias.count(), "; ", p.c, " are needed");
  check(std::isfinite(float(epsilon)) && epsilon >= 0, "epsilon is ", epsilon, "; it is finite and at least 0");
  p.x.data = x.as<float>();
  p.weight = channels_of("weight", weight, p.c, x), p.bias = channels_of("bias", bias, p.c, x);
  p.epsilon = float(epsilon);
  p.epilogue = output_only(args);
  return p;
}

AttentionProblem attention_problem(const Array& x, int64_t heads, double exponent, const EpilogueArgs& args) {
  check_type(x.type.element == Element::f32, "x is ", x.type.name, "; it must be float32");
  check(x.axes == 3 && x.sizes[1] >= 1 && x.contiguous, "x must be [N, T, 3 * C] with T of 1 or more, contiguous, not ", shown(x));
  check(heads >= 1 && x.sizes[2] >= 1 && x.sizes[2] % (3 * heads) == 0, "x has ", x.sizes[2], " features, no multiple of 3 times heads=", heads);
  check(std::isfinite(float(exponent)) && float(exponent) > 0, "exponent is ", exponent, "; it is finite and above 0");
  AttentionProblem p;
  p.batch = x.sizes[0], p.q_tokens = p.k_tokens = x.sizes[1];
  p.heads = p.kv_heads = heads, p.width = p.v_width = x.sizes[2] / 3 / heads;
  p.q_step = p.k_step = p.v_step = x.sizes[2], p.exponent = float(exponent);
  p.q.data = x.as<float>(), p.k.data = x.as<float>() + heads * p.width, p.v.data = x.as<float>() + 2 * heads * p.width;
  p.epilogue = output_only(args);
  return p;
}

}  // namespace qk
