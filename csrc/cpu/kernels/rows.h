// Quantization by rows: to int8, back, and the range that a dynamic scale comes from.
// A last part-vector goes through a small zero-padded buffer, so that no width has its own arithmetic.
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

// Calls body(in, out, count) for each vector of `count` elements; in and out are whole vectors, copied where partial.
template <class V, class Body>
QK_INLINE void for_vectors(const void* x, int64_t x_item, void* y, int64_t y_item, int64_t count, Body body) {
  const char* in = static_cast<const char*>(x);
  char* out = static_cast<char*>(y);
  int64_t i = 0;
  for (; i + V::width <= count; i += V::width) body(in + i * x_item, out + i * y_item);
  if constexpr (V::width > 1) {
    if (i == count) return;
    alignas(64) char in_tail[V::width * 4] = {};
    alignas(64) char out_tail[V::width * 4];
    __builtin_memcpy(in_tail, in + i * x_item, size_t((count - i) * x_item));
    body(in_tail, out_tail);
    if (y) __builtin_memcpy(out + i * y_item, out_tail, size_t((count - i) * y_item));
  }
}

template <class V>
void quantize(const void* x, DType type, int64_t count, float inv_scale, int32_t zero, bool flip, int8_t* q) {
  if (type == DType::s8) {
    const int8_t* in = static_cast<const int8_t*>(x);
    const int8_t mask = flip ? -128 : 0;
    for (int64_t i = 0; i < count; ++i) q[i] = in[i] ^ mask;
    return;
  }
  const auto flip_bits = V::set1i(flip ? -128 : 0);
  const auto quantizer = Quantizer<V>::make(inv_scale, zero);
  const auto run = [&](auto load, int64_t item) QK_LAMBDA {
    for_vectors<V>(x, item, q, 1, count, [&](const void* in, void* out) QK_LAMBDA {
      V::store_s8(static_cast<int8_t*>(out), V::xori(quantizer(load(in)), flip_bits));
    });
  };
  if (type == DType::f32) run([](const void* p) QK_LAMBDA { return V::load_f32(static_cast<const float*>(p)); }, 4);
  else if (type == DType::f16) run([](const void* p) QK_LAMBDA { return V::load_f16(static_cast<const uint16_t*>(p)); }, 2);
  else run([](const void* p) QK_LAMBDA { return V::load_bf16(static_cast<const uint16_t*>(p)); }, 2);
}

template <class V>
Extremes extremes(const void* x, DType type, int64_t count) {
  auto lo = V::set1(0.0f), hi = V::set1(0.0f);
  for_vectors<V>(x, size_of(type), nullptr, 0, count, [&](const void* in, void*) QK_LAMBDA {
    const auto v = load_float<V>(in, 0, type);
    lo = V::min(v, lo);
    hi = V::max(v, hi);
  });
  alignas(64) float los[V::width], his[V::width];
  V::store_f32(los, lo);
  V::store_f32(his, hi);
  Extremes e{0.0f, 0.0f};
  for (int64_t i = 0; i < V::width; ++i) {
    e.lo = los[i] < e.lo ? los[i] : e.lo;
    e.hi = his[i] > e.hi ? his[i] : e.hi;
  }
  return e;
}

template <class V>
void to_f32(const void* x, DType type, int64_t count, float* y) {
  for_vectors<V>(x, size_of(type), y, 4, count, [&](const void* in, void* out) QK_LAMBDA {
    V::store_f32(static_cast<float*>(out), load_float<V>(in, 0, type));
  });
}

// y = float(q - zero) * scale
template <class V>
void dequantize_row(const int8_t* q, int64_t count, float scale, int32_t zero, DType out_type, void* y) {
  Epilogue e;
  e.out_type = out_type;
  const auto finish = Finisher<V>::make(e);
  for_vectors<V>(q, 1, y, size_of(out_type), count, [&](const void* in, void* out) QK_LAMBDA {
    const auto i = V::subi(V::load_s8(static_cast<const int8_t*>(in)), V::set1i(zero));
    finish.whole(V::mul(V::to_float(i), V::set1(scale)), nullptr, out);
  });
}

}  // namespace
}  // namespace qk
