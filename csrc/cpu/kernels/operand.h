// What is read as float32, whatever it is stored as, and runs of results to their output.
#pragma once
#include "pool.h"
#include "tokens.h"

namespace qk {
namespace {

// Neighbours from `p` on: run(i, left) is the vector at i, of which `left` values exist.
template <class V>
struct FloatRun {
  const float* p;
  QK_METHOD typename V::F operator()(int64_t i, int64_t left) const { return load_some<V>(p + i, left); }
};
template <class V>
struct ByteRun {
  const int8_t* p;
  typename V::I mask, zero;
  typename V::F scale;
  QK_METHOD typename V::F operator()(int64_t i, int64_t left) const {
    return V::mul(V::to_float(V::subi(V::xori(load_some<V>(p + i, left), mask), zero)), scale);
  }
};

// Calls body(run) for the values of an operand from index `at` on.
template <class V, class Body>
QK_INLINE void with_run(const Operand& o, int64_t at, Body body) {
  if (o.type == DType::f32) body(FloatRun<V>{static_cast<const float*>(o.data) + at});
  else body(ByteRun<V>{static_cast<const int8_t*>(o.data) + at, V::set1i(o.mask), V::set1i(o.zero), V::set1(o.scale)});
}

QK_INLINE float float_at(const Operand& o, int64_t at) {
  if (o.type == DType::f32) return static_cast<const float*>(o.data)[at];
  return float((static_cast<const int8_t*>(o.data)[at] ^ o.mask) - o.zero) * o.scale;
}

// Values [at, at + count): where they lie, or written to `block`.
template <class V>
QK_INLINE const float* as_floats(const Operand& o, int64_t at, int64_t count, float* block) {
  if (o.type == DType::f32) return static_cast<const float*>(o.data) + at;
  const ByteRun<V> run{static_cast<const int8_t*>(o.data) + at, V::set1i(o.mask), V::set1i(o.zero), V::set1(o.scale)};
  int64_t i = 0;
  for (; i + V::width <= count; i += V::width) V::store_f32(block + i, run(i, V::width));
  if (i < count) {
    alignas(64) float last[V::width];
    V::store_f32(last, run(i, count - i));
    __builtin_memcpy(block + i, last, size_t(count - i) * 4);
  }
  return block;
}

// y[i] = value(i, left) for i in [0, count), float32 or int8; to int8, four vectors share their packing.
template <class V, class Value>
QK_INLINE void store_run(const Finisher<V>& finish, int64_t count, void* y, Value value) {
  constexpr int64_t W = V::width;
  const bool bytes = finish.e.out_type == DType::s8;
  int64_t i = 0;
  if (bytes) {
    const Finisher<V> f = finish;  // copies that no store can alias
    const int32_t zero = f.e.out_zero;
    const int8_t mask = f.e.out_mask;
    int8_t* out = static_cast<int8_t*>(y);
    for (; i + 4 * W <= count; i += 4 * W) {
      const typename V::I q[4] = {f.round(value(i, W)), f.round(value(i + W, W)), f.round(value(i + 2 * W, W)), f.round(value(i + 3 * W, W))};
      int8_t* const to[2] = {out + i, out + i + 2 * W};
      V::store_s8_rows(to, q, zero, mask);
    }
  } else {
    float* out = static_cast<float*>(y);
    for (; i + W <= count; i += W) V::store_f32(out + i, finish.clamp(value(i, W)));
  }
  for (; i < count; i += W) {
    const int64_t left = count - i < W ? count - i : W;
    finish(value(i, left), nullptr, left, static_cast<char*>(y) + i * (bytes ? 1 : 4));
  }
}

}  // namespace
}  // namespace qk
