// Layer normalization: rows are read three times, from L1 after the first, and four at a time, so that their chains of
// additions hide each other's latency.
#pragma once
#include "operand.h"

namespace qk {
namespace {

// total[r] = the sum of row r, or of what `add` makes of it: add(partial sums, values, r). Rows are filled up to a
// multiple of 16 with rest[r], which must add nothing.
template <class V, int R, class Add>
QK_INLINE void sum_rows(const float* x, int64_t count, const float* rest, Add add, float* total) {
  typename V::F part[R][kVectors<V>];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors<V>; ++v) part[r][v] = V::set1(0.0f);
  const auto take = [&](const float* at, int64_t step) QK_LAMBDA {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors<V>; ++v) part[r][v] = add(part[r][v], V::load_f32(at + r * step + v * V::width), r);
  };
  const int64_t whole = count / kParts * kParts;
  for (int64_t i = 0; i < whole; i += kParts) take(x + i, count);
  if (whole < count) {
    alignas(64) float last[R][kParts];
    for (int r = 0; r < R; ++r)
      for (int64_t i = 0; i < kParts; ++i) last[r][i] = whole + i < count ? x[r * count + whole + i] : rest[r];
    take(last[0], kParts);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) total[r] = sum_of<V>(part[r]);
}

template <class V, int R>
QK_INLINE void layer_norm_rows(const LayerNormProblem& p, const Finisher<V>& finish, int64_t first, float* memory) {
  const float* x = as_floats<V>(p.x, first * p.c, R * p.c, memory);
  const float count = float(p.c), zeros[R] = {};
  float mean[R] = {}, scale[R];
  if (p.centered) {
    sum_rows<V, R>(x, p.c, zeros, [](typename V::F sum, typename V::F v, int) QK_LAMBDA { return V::add(sum, v); }, mean);
    for (int r = 0; r < R; ++r) mean[r] /= count;
  }
  const auto square = [&](typename V::F sum, typename V::F v, int r) QK_LAMBDA {
    const auto away = V::sub(v, V::set1(mean[r]));
    return V::fma(away, away, sum);
  };
  sum_rows<V, R>(x, p.c, mean, square, scale);
  for (int r = 0; r < R; ++r) scale[r] = 1.0f / __builtin_sqrtf(scale[r] / count + p.epsilon);
  const int64_t step = p.c;
  const float *weight = p.weight, *bias = p.bias;
  const auto value = [&](int r, int64_t c, int64_t left) QK_LAMBDA {
    const auto away = V::sub(load_some<V>(x + r * step + c, left), V::set1(mean[r]));
    const auto add = bias ? load_some<V>(bias + c, left) : V::set1(0.0f);
    return V::fma(V::mul(away, V::set1(scale[r])), load_some<V>(weight + c, left), add);
  };
  store_rows<V, R>(finish, p.c, static_cast<char*>(p.y) + first * p.c * size_of(p.epilogue.out_type), step, value);
}

template <class V>
void layer_norm(const LayerNormProblem& p, int64_t begin, int64_t end, float* memory) {
  const auto finish = Finisher<V>::make(p.epilogue);
  int64_t r = begin;
  for (; r + 4 <= end; r += 4) layer_norm_rows<V, 4>(p, finish, r, memory);
  for (; r < end; ++r) layer_norm_rows<V, 1>(p, finish, r, memory);
}

}  // namespace
}  // namespace qk
