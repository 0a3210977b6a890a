// The vector type of core/epilogue.h on a GPU: W neighbouring values in the registers of one thread. Memory is touched
// in pieces of up to 16 bytes, so that addresses are multiples of the whole vector, or of 16.
#pragma once
#include "prim.cuh"

namespace qk {
namespace {

template <class T, int W>
struct alignas(sizeof(T) * W < 16 ? sizeof(T) * W : 16) Pack {
  T v[W];
};

QK_INLINE float bits_to_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
QK_INLINE uint32_t float_to_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

template <int W>
struct Lanes {
  using F = Pack<float, W>;
  using I = Pack<int32_t, W>;
  static constexpr int64_t width = W;

  template <class To, class Body>
  QK_DEVICE Pack<To, W> each(Body body) {
    Pack<To, W> r;
    QK_UNROLL for (int i = 0; i < W; ++i) r.v[i] = body(i);
    return r;
  }
  QK_DEVICE F set1(float v) { return each<float>([&](int) { return v; }); }
  QK_DEVICE I set1i(int32_t v) { return each<int32_t>([&](int) { return v; }); }
  QK_DEVICE F load_f32(const float* p) { return global_load<F>(p); }
  QK_DEVICE F load_f16(const uint16_t* p) {
    const auto h = global_load<Pack<uint16_t, W>>(p);
    return each<float>([&](int i) { return from_f16(h.v[i]); });
  }
  QK_DEVICE F load_bf16(const uint16_t* p) {
    const auto h = global_load<Pack<uint16_t, W>>(p);
    return each<float>([&](int i) { return bits_to_float(uint32_t(h.v[i]) << 16); });
  }
  QK_DEVICE I load_s8(const int8_t* p) {
    const auto q = global_load<Pack<int8_t, W>>(p);
    return each<int32_t>([&](int i) { return int32_t(q.v[i]); });
  }
  QK_DEVICE I load_i32(const int32_t* p) { return global_load<I>(p); }
  QK_DEVICE F add(F a, F b) { return each<float>([&](int i) { return a.v[i] + b.v[i]; }); }
  QK_DEVICE F mul(F a, F b) { return each<float>([&](int i) { return a.v[i] * b.v[i]; }); }
  QK_DEVICE F fma(F a, F b, F c) { return each<float>([&](int i) { return fma_rn(a.v[i], b.v[i], c.v[i]); }); }
  QK_DEVICE F max(F a, F b) { return each<float>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
  QK_DEVICE F min(F a, F b) { return each<float>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
  QK_DEVICE I addi(I a, I b) { return each<int32_t>([&](int i) { return int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i])); }); }
  QK_DEVICE I subi(I a, I b) { return each<int32_t>([&](int i) { return int32_t(uint32_t(a.v[i]) - uint32_t(b.v[i])); }); }
  QK_DEVICE I muli(I a, I b) { return each<int32_t>([&](int i) { return int32_t(uint32_t(a.v[i]) * uint32_t(b.v[i])); }); }
  QK_DEVICE I xori(I a, I b) { return each<int32_t>([&](int i) { return a.v[i] ^ b.v[i]; }); }
  QK_DEVICE F to_float(I a) { return each<float>([&](int i) { return float(a.v[i]); }); }
  QK_DEVICE I round(F a) { return each<int32_t>([&](int i) { return to_int_rn(a.v[i]); }); }
  QK_DEVICE void store_f32(float* p, F a) { global_store(p, a); }
  QK_DEVICE void store_f16(uint16_t* p, F a) {
    global_store(p, each<uint16_t>([&](int i) { return to_f16(a.v[i]); }));
  }
  QK_DEVICE void store_bf16(uint16_t* p, F a) {  // round half to even; never NaN here
    global_store(p, each<uint16_t>([&](int i) {
                   const uint32_t bits = float_to_bits(a.v[i]);
                   return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
                 }));
  }
  QK_DEVICE void store_s8(int8_t* p, I a) {
    global_store(p, each<int8_t>([&](int i) { return int8_t(a.v[i]); }));
  }
};

}  // namespace
}  // namespace qk
