// What layer normalization and attention share: sums and maxima of a row, and rows of values to their output.
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

// A sum in an order that every vector width shares, or a maximum: sixteen parts, by index mod 16 and in increasing index,
// then the upper half joined to the lower until one is left.
constexpr int64_t kParts = 16;

template <class V>
constexpr int kVectors = int(kParts / V::width);  // that hold the parts

template <class V, class Join>
QK_INLINE float joined(const typename V::F (&part)[kVectors<V>], Join join) {
  alignas(64) float all[kParts];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors<V>; ++v) V::store_f32(all + v * V::width, part[v]);
#pragma GCC unroll 4
  for (int64_t half = kParts / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int64_t i = 0; i < half; ++i) all[i] = join(all[i], all[i + half]);
  return all[0];
}

template <class V>
QK_INLINE float sum_of(const typename V::F (&part)[kVectors<V>]) {
  return joined<V>(part, [](float a, float b) QK_LAMBDA { return a + b; });
}
template <class V>
QK_INLINE float largest_of(const typename V::F (&part)[kVectors<V>]) {
  return joined<V>(part, [](float a, float b) QK_LAMBDA { return a > b ? a : b; });
}

template <class V>
QK_INLINE typename V::F load_some(const float* p, int64_t count) {
  if (count >= V::width) return V::load_f32(p);
  alignas(64) float part[V::width] = {};
  __builtin_memcpy(part, p, size_t(count) * 4);
  return V::load_f32(part);
}

// R rows of y, `step` elements apart; value(r, c, count) is the vector at column c, of which `count` columns exist. To int8,
// two rows of two vectors share their packing.
template <class V, int R, class Value>
QK_INLINE void store_rows(const Finisher<V>& finish, int64_t columns, void* y, int64_t step, Value value) {
  constexpr int64_t W = V::width;
  const DType type = finish.e.out_type;
  int64_t c = 0;
  if (type == DType::s8) {
    const Finisher<V> f = finish;  // copies that no store can alias
    const int32_t zero = f.e.out_zero;
    const int8_t mask = f.e.out_mask;
    int8_t* out = static_cast<int8_t*>(y);
    for (; c + 2 * W <= columns; c += 2 * W)
#pragma GCC unroll 2
      for (int r = 0; r < R; r += 2) {
        const int next = r + 1 < R ? r + 1 : r;  // a last odd row is stored twice
        const typename V::I q[4] = {f.round(value(r, c, W)), f.round(value(r, c + W, W)), f.round(value(next, c, W)),
                                    f.round(value(next, c + W, W))};
        int8_t* const to[2] = {out + r * step + c, out + next * step + c};
        V::store_s8_rows(to, q, zero, mask);
      }
  }
  for (; c < columns; c += W)
    for (int r = 0; r < R; ++r) {
      char* to = static_cast<char*>(y) + (r * step + c) * size_of(type);
      if (c + W <= columns) finish.whole(value(r, c, W), nullptr, to);
      else finish.part(value(r, c, columns - c), columns - c, nullptr, to);
    }
}

}  // namespace
}  // namespace qk
