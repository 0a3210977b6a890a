// Layer normalization: each row is read three times, from L1 after the first.
#pragma once
#include "sums.h"

namespace qk {
namespace {

template <class V>
QK_INLINE float mean_of(const float* x, int64_t count) {
  Sums<V> sum;
  for_sixteens(x, count, 0.0f, [&](const float* at) QK_LAMBDA {
    for (int v = 0; v < sum.vectors; ++v) sum.part[v] = V::add(sum.part[v], V::load_f32(at + v * V::width));
  });
  return sum.total() / float(count);
}

template <class V>
QK_INLINE float variance_of(const float* x, int64_t count, float mean) {
  Sums<V> sum;
  const auto m = V::set1(mean);
  for_sixteens(x, count, mean, [&](const float* at) QK_LAMBDA {
    for (int v = 0; v < sum.vectors; ++v) {
      const auto d = V::sub(V::load_f32(at + v * V::width), m);
      sum.part[v] = V::fma(d, d, sum.part[v]);
    }
  });
  return sum.total() / float(count);
}

template <class V>
void layer_norm(const LayerNormProblem& p, int64_t begin, int64_t end) {
  const auto finish = Finisher<V>::make(p.epilogue);
  const int64_t item = size_of(p.epilogue.out_type), whole = p.c / V::width * V::width, left = p.c - whole;
  alignas(64) float w_last[V::width] = {}, b_last[V::width] = {}, x_last[V::width] = {};
  __builtin_memcpy(w_last, p.weight + whole, size_t(left) * 4);
  __builtin_memcpy(b_last, p.bias + whole, size_t(left) * 4);
  for (int64_t r = begin; r < end; ++r) {
    const float* x = p.x + r * p.c;
    char* y = static_cast<char*>(p.y) + r * p.c * item;
    const float m = mean_of<V>(x, p.c);
    const auto mean = V::set1(m), inverse = V::set1(1.0f / __builtin_sqrtf(variance_of<V>(x, p.c, m) + p.epsilon));
    const auto value = [&](const float* x, const float* w, const float* b) QK_LAMBDA {
      return V::fma(V::mul(V::sub(V::load_f32(x), mean), inverse), V::load_f32(w), V::load_f32(b));
    };
    for (int64_t c = 0; c < whole; c += V::width) finish.whole(value(x + c, p.weight + c, p.bias + c), nullptr, y + c * item);
    if (left == 0) continue;
    __builtin_memcpy(x_last, x + whole, size_t(left) * 4);
    finish.part(value(x_last, w_last, b_last), left, nullptr, y + whole * item);
  }
}

}  // namespace
}  // namespace qk
