// Sums of a row in an order that every vector width shares: sixteen partial sums, by index mod 16 and in increasing
// index, then the upper half added to the lower until one is left.
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

constexpr int64_t kSums = 16;

template <class V>
struct Sums {
  static constexpr int vectors = int(kSums / V::width);
  typename V::F part[vectors];

  Sums() {
    for (auto& p : part) p = V::set1(0.0f);
  }
  QK_METHOD float total() const {
    alignas(64) float all[kSums];
    for (int v = 0; v < vectors; ++v) V::store_f32(all + v * V::width, part[v]);
    for (int64_t half = kSums / 2; half > 0; half /= 2)
      for (int64_t i = 0; i < half; ++i) all[i] += all[i + half];
    return all[0];
  }
};

// body(x) for every sixteen values of a row; the last ones are filled up with `rest`, which must add nothing.
template <class Body>
QK_INLINE void for_sixteens(const float* x, int64_t count, float rest, Body body) {
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) body(x + i);
  if (i == count) return;
  alignas(64) float last[kSums];
  for (int64_t j = 0; j < kSums; ++j) last[j] = i + j < count ? x[i + j] : rest;
  body(last);
}

}  // namespace
}  // namespace qk
