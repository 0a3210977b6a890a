// Sums, means and extremes over pixels, then over the channels of each row.
#pragma once
#include "columns.h"

namespace qk {
namespace {

template <class V, bool largest>
QK_INLINE typename V::F further(typename V::F a, typename V::F b) {
  return largest ? V::max(b, a) : V::min(b, a);  // a where b is a NaN
}

template <class V, bool largest>
QK_INLINE void extreme_rows(const Operand& x, int64_t at, int64_t step, int64_t columns, int64_t count, float* y) {
  const auto start = V::set1(largest ? -__builtin_inff() : __builtin_inff());
  with_run<V>(x, at, [&](auto run) QK_LAMBDA {
    join_pixels<V>(columns, 1, count, start, [=](int64_t, int64_t j, int64_t c, int64_t left) QK_LAMBDA { return run(j * step + c, left); },
                   [](typename V::F a, typename V::F b) QK_LAMBDA { return further<V, largest>(a, b); },
                   [=](int64_t c, typename V::F total, int64_t) QK_LAMBDA { V::store_f32(y + c, total); });
  });
}

// x [count] joined in sixteen parts, then halves.
template <class V, class Join, class JoinOne>
QK_INLINE float join_row(const float* x, int64_t count, float start, Join join, JoinOne join_one) {
  typename V::F part[kVectors<V>];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors<V>; ++v) part[v] = V::set1(start);
  int64_t i = 0;
  for (; i + kParts <= count; i += kParts)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors<V>; ++v) part[v] = join(part[v], V::load_f32(x + i + v * V::width));
  if (i < count) {
    alignas(64) float last[kParts];
    for (int64_t j = 0; j < kParts; ++j) last[j] = i + j < count ? x[i + j] : start;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors<V>; ++v) part[v] = join(part[v], V::load_f32(last + v * V::width));
  }
  return joined<V>(part, join_one);
}

template <class V>
QK_INLINE float reduced_row(ReduceOp op, const float* x, int64_t count) {
  const float infinity = __builtin_inff();
  if (op == ReduceOp::max)
    return join_row<V>(x, count, -infinity, [](typename V::F a, typename V::F b) QK_LAMBDA { return further<V, true>(a, b); },
                       [](float a, float b) QK_LAMBDA { return b > a ? b : a; });
  if (op == ReduceOp::min)
    return join_row<V>(x, count, infinity, [](typename V::F a, typename V::F b) QK_LAMBDA { return further<V, false>(a, b); },
                       [](float a, float b) QK_LAMBDA { return b < a ? b : a; });
  return join_row<V>(x, count, 0.0f, [](typename V::F a, typename V::F b) QK_LAMBDA { return V::add(a, b); },
                     [](float a, float b) QK_LAMBDA { return a + b; });
}

// Columns [begin, end) of rows * c, whole rows where they are reduced too.
template <class V>
void reduce(const ReduceProblem& p, int64_t outer, int64_t begin, int64_t end, float* memory) {
  const int64_t step = p.rows * p.c, at = outer * p.count * step + begin, columns = end - begin;
  const bool sums = p.op == ReduceOp::mean || p.op == ReduceOp::sum;
  const float* found = memory;
  if (p.count == 1) found = as_floats<V>(p.x, at, columns, memory);
  else if (sums)
    sum_pixels<V>(p.x, at, 0, step, columns, 1, p.count, [=](int64_t c, typename V::F total, int64_t) QK_LAMBDA { V::store_f32(memory + c, total); });
  else if (p.op == ReduceOp::max) extreme_rows<V, true>(p.x, at, step, columns, p.count, memory);
  else extreme_rows<V, false>(p.x, at, step, columns, p.count, memory);
  int64_t count = columns, first = outer * step + begin;
  if (p.over_c) {
    count = columns / p.c, first /= p.c;
    float* rows = memory + round_up(columns, kParts);
    for (int64_t r = 0; r < count; ++r) rows[r] = reduced_row<V>(p.op, found + r * p.c, p.c);
    found = rows;
  }
  const auto factor = V::set1(p.op == ReduceOp::mean ? 1.0f / float(p.count * (p.over_c ? p.c : 1)) : 1.0f);
  store_run<V>(Finisher<V>::make(p.epilogue), count, static_cast<char*>(p.y) + first * size_of(p.epilogue.out_type),
               [=](int64_t i, int64_t left) QK_LAMBDA { return V::mul(load_some<V>(found + i, left), factor); });
}

}  // namespace
}  // namespace qk
