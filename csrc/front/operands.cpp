#include "operands.h"

#include <algorithm>

#include "../core/scale.h"

namespace qk {

void check_beside(const char* what, const Array& a, const Array& x) {
  check(a.place == x.place, what, " is on ", shown(a.place), ", but x is on ", shown(x.place));
}

void check_scale(const char* what, double value) {
  check(is_scale(float(value)), what, " is ", value, "; scales and their inverses are finite and above 0");
}

int32_t check_zero_point(const char* what, int64_t value) {
  check(value >= -128 && value <= 127, what, " is ", value, "; zero points are in [-128, 127]");
  return int32_t(value);
}

const float* scales_of(const char* what, const Array& a, int64_t count, const Array& x) {
  check_beside(what, a, x);
  check_type(a.type.element == Element::f32, what, " is ", a.type.name, "; it must be float32");
  check(a.count() == count, what, " has ", a.count(), " values; ", count, " are needed");
  check(a.contiguous, what, " must be contiguous");
  const float* p = a.as<float>();
  if (!a.on_cpu() || are_scales(p, count)) [[likely]] return p;
  for (int64_t i = 0; i < count; ++i)
    check(is_scale(p[i]), what, "[", i, "] is ", p[i], "; scales and their inverses are finite and above 0");
  return p;
}

const int32_t* zero_points_of(const char* what, const Array& a, int64_t count, const Array& x) {
  check_beside(what, a, x);
  check_type(a.type.element == Element::i32, what, " is ", a.type.name, "; it must be int32");
  check(a.count() == count, what, " has ", a.count(), " values; ", count, " are needed, as many as scales");
  check(a.contiguous, what, " must be contiguous");
  const int32_t* p = a.as<int32_t>();
  if (!a.on_cpu()) return p;
  for (int64_t i = 0; i < count; ++i)
    check(p[i] >= -128 && p[i] <= 127, what, "[", i, "] is ", p[i], "; zero points are in [-128, 127]");
  return p;
}

const float* channels_of(const char* what, const Array& a, int64_t n, const Array& x) {
  check_beside(what, a, x);
  check_type(a.type.element == Element::f32, what, " is ", a.type.name, " ", shown(a), "; it must be contiguous float32 [", n, "]");
  check(a.contiguous && a.count() == n, what, " is ", a.type.name, " ", shown(a), "; it must be contiguous float32 [", n, "]");
  return a.as<float>();
}

const int8_t* packed_of(const Array& packed, const PackedLayout& layout, const Array& x) {
  check_beside("weight", packed, x);
  check_type(packed.type.element == Element::s8, "weight is ", packed.type.name, "; it must come from pack_weight, which gives int8");
  check(packed.contiguous, "weight must come from pack_weight, which gives contiguous bytes");
  const int8_t* bytes = packed.as<int8_t>();
  const int64_t size = packed.count();
  check(packed.on_cpu() ? layout.matches(bytes, size) : size == layout.bytes(), "weight holds ", size,
        " bytes, which are not a packed weight of N=", layout.groups * layout.n, ", K=", layout.k, ", groups=", layout.groups,
        ", as the other arguments ask for");
  return bytes;
}

static void set_output(const EpilogueArgs& args, const Type& otherwise, Epilogue& e) {
  e.out_type = supported("out_dtype", args.out_dtype.value_or(otherwise));
  check_scale("output_scale", args.output_scale);
  e.out_inv_scale = 1.0f / float(args.output_scale);
  e.out_zero = check_zero_point("output_zero_point", args.output_zero_point);
}

Epilogue output_only(const EpilogueArgs& args) {
  check(!args.residual && !args.clamp_min && !args.clamp_max, "a residual or clamp is not taken here");
  Epilogue e;
  set_output(args, Type(), e);
  return e;
}

Epilogue epilogue_of(const Operands& o, const EpilogueArgs& args) {
  Epilogue e;
  const Array& w = o.weight_scale;
  check(w.axes == 1, "weight_scale is ", shown(w), "; it must be [N]");
  e.w_scale = scales_of("weight_scale", w, w.sizes[0], o.x);
  if (o.bias) e.bias = channels_of("bias", *o.bias, w.sizes[0], o.x);
  if (args.clamp_min) e.lo = float(*args.clamp_min);
  if (args.clamp_max) e.hi = float(*args.clamp_max);
  check(e.lo <= e.hi, "clamp_min=", e.lo, " is above clamp_max=", e.hi);
  set_output(args, o.x.type.element == Element::s8 ? Type() : o.x.type, e);
  check_scale("residual_scale", args.residual_scale);
  e.residual_scale = float(args.residual_scale);
  e.residual_zero = check_zero_point("residual_zero_point", args.residual_zero_point);
  return e;
}

Range set_input_scales(const Operands& o, int64_t count, const char* each, int64_t rows_each, int64_t rows, Epilogue& e) {
  check(o.input_scale.has_value() == o.input_zero_point.has_value(), "input_scale and input_zero_point come together; only one was given");
  if (!o.input_scale) {
    check(o.x.type.element != Element::s8, "x is int8, so input_scale and input_zero_point are needed");
    return o.symmetric ? Range::dynamic_symmetric : Range::dynamic_asymmetric;
  }
  const int64_t given = o.input_scale->count();
  check(given == 1 || given == count, "input_scale has ", given, " values; 1 or ", count, " (one a ", each, ") are needed");
  e.x_scale = scales_of("input_scale", *o.input_scale, given, o.x);
  e.x_zero = zero_points_of("input_zero_point", *o.input_zero_point, given, o.x);
  e.rows_per_scale = std::max<int64_t>(given == count && count != 1 ? rows_each : rows, 1);
  return Range::given;
}

void set_residual(const Array& residual, const Array& x, const Sizes& sizes, bool lies, Epilogue& e) {
  check_beside("residual", residual, x);
  Array y = residual;
  y.axes = int64_t(sizes.size()), y.sizes = sizes.data();
  check(residual.axes == y.axes && std::equal(sizes.begin(), sizes.end(), residual.sizes), "residual is ", shown(residual),
        ", but the output is ", shown(y));
  e.residual_type = supported("residual", residual.type);
  e.residual = lies ? residual.data : nullptr;
}

}  // namespace qk
