// A row's weights, as attention's: powers of two of what is less than its largest, over their sum.
#pragma once
#include "operand.h"

namespace qk {
namespace {

constexpr float kLog2E = 1.44269504f;

// The largest of a row's scores. What lies behind them up to a multiple of 16 becomes -inf.
template <class V>
QK_INLINE float largest_score(float* s, int64_t count) {
  const int64_t end = round_up(count, kParts);
  for (int64_t j = count; j < end; ++j) s[j] = -__builtin_inff();
  typename V::F most[kVectors<V>];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors<V>; ++v) most[v] = V::set1(-__builtin_inff());
  for (int64_t j = 0; j < end; j += kParts)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors<V>; ++v) most[v] = V::max(V::load_f32(s + j + v * V::width), most[v]);
  return largest_of<V>(most);
}

// Scores to 2^((score - largest) * exponent), in place; returns their sum.
template <class V>
QK_INLINE float exponentials(float* s, int64_t count, float largest, float exponent) {
  const auto top = V::set1(largest), factor = V::set1(exponent);
  typename V::F sum[kVectors<V>];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors<V>; ++v) sum[v] = V::set1(0.0f);
  for (int64_t j = 0; j < count; j += kParts)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors<V>; ++v) {
      float* at = s + j + v * V::width;
      const auto e = exp2_of<V>(V::mul(V::sub(V::load_f32(at), top), factor));
      V::store_f32(at, e);
      sum[v] = V::add(sum[v], e);
    }
  return sum_of<V>(sum);
}

// 1 / the sum of a row's weights; 0 where there are none, since every score is -inf or a NaN.
QK_INLINE float inverse_of(float sum) { return sum > 0.0f ? 1.0f / sum : 0.0f; }

template <class V>
void softmax(const SoftmaxProblem& p, int64_t begin, int64_t end, float* memory) {
  const auto finish = Finisher<V>::make(p.epilogue);
  const int64_t item = size_of(p.epilogue.out_type);
  for (int64_t r = begin; r < end; ++r) {
    const float* x = as_floats<V>(p.x, r * p.c, p.c, memory);
    if (x != memory) __builtin_memcpy(memory, x, size_t(p.c) * 4);
    const float largest = largest_score<V>(memory, p.c), sum = exponentials<V>(memory, p.c, largest, kLog2E);
    char* y = static_cast<char*>(p.y) + r * p.c * item;
    if (!p.log) {
      const auto inverse = V::set1(inverse_of(sum));
      store_run<V>(finish, p.c, y, [=](int64_t i, int64_t left) QK_LAMBDA { return V::mul(load_some<V>(memory + i, left), inverse); });
      continue;
    }
    const auto top = V::set1(largest), log = log_of<V>(V::set1(sum));
    with_run<V>(p.x, r * p.c, [&](auto run) QK_LAMBDA {
      store_run<V>(finish, p.c, y, [=](int64_t i, int64_t left) QK_LAMBDA { return V::sub(V::sub(run(i, left), top), log); });
    });
  }
}

}  // namespace
}  // namespace qk
