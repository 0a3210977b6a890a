#include "problems.h"

namespace qk {

bool rows_lie(const Array& x) { return x.axes == 2 ? x.strides[1] == 1 || x.sizes[1] == 1 : x.contiguous; }

Sizes with_last(const Array& x, int64_t last) {
  Sizes size(x.sizes, x.sizes + x.axes);
  size.back() = last;
  return size;
}

// All but the scales of x.
static GemmProblem rows_problem(const Operands& o, const EpilogueArgs& args) {
  const Array& x = o.x;
  check(x.axes >= 1, "x has no axis; it must be [..., K]");
  GemmProblem p;
  p.x_type = supported("x", x.type);
  p.k = x.last();
  p.n = o.weight_scale.count();
  check(p.k >= 1 && p.n >= 1, "x is ", shown(x), " and weight_scale has ", p.n, " values; K and N are at least 1");
  check(p.k <= kMaxK, "K=", p.k, " is above the limit of ", kMaxK);
  p.m = x.count() / p.k;
  p.x = x.data;
  p.x_stride = x.axes == 2 && p.m > 1 ? x.strides[0] : p.k;
  p.weight = packed_of(o.weight, {1, p.n, p.k}, x);
  p.c_stride = p.n;
  p.epilogue = epilogue_of(o, args);
  p.epilogue.residual_stride = p.n;
  if (args.residual) set_residual(*args.residual, x, with_last(x, p.n), args.residual->contiguous, p.epilogue);
  return p;
}

GemmProblem linear_problem(const Operands& o, const EpilogueArgs& args) {
  GemmProblem p = rows_problem(o, args);
  p.range = set_input_scales(o, p.m, "row", 1, p.m, p.epilogue);
  return p;
}

WeightOnlyProblem weight_only_problem(const Operands& o, const EpilogueArgs& args) {
  check_type(o.x.type.element != Element::s8, "x is int8; use linear for int8 activations");
  return rows_problem(o, args);
}

}  // namespace qk
