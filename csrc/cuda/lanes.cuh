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
  // One value at a time as the contract has it; more of them by the hardware's, which orders -0 below 0: the same bits but
  // where b is a lower bound of -0 or an upper one of 0, for which the launch takes one value at a time (takes_vectors).
  QK_DEVICE F max(F a, F b) {
    return each<float>([&](int i) { return W > 1 ? max_f32(a.v[i], b.v[i]) : a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  QK_DEVICE F min(F a, F b) {
    return each<float>([&](int i) { return W > 1 ? min_f32(a.v[i], b.v[i]) : a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  QK_DEVICE I addi(I a, I b) { return each<int32_t>([&](int i) { return int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i])); }); }
  QK_DEVICE I subi(I a, I b) { return each<int32_t>([&](int i) { return int32_t(uint32_t(a.v[i]) - uint32_t(b.v[i])); }); }
  QK_DEVICE I muli(I a, I b) { return each<int32_t>([&](int i) { return int32_t(uint32_t(a.v[i]) * uint32_t(b.v[i])); }); }
  QK_DEVICE I xori(I a, I b) { return each<int32_t>([&](int i) { return a.v[i] ^ b.v[i]; }); }
  QK_DEVICE F to_float(I a) { return each<float>([&](int i) { return float(a.v[i]); }); }
  // To the nearest, ties to even, below 2^22: beside 1.5 * 2^23 a float's steps are integers.
  QK_DEVICE I round(F a) {
    constexpr float beside = 0x1.8p23f;
    return each<int32_t>([&](int i) { return int32_t(float_to_bits(a.v[i] + beside) - 0x4b400000u); });
  }
  // float(q - zero) of four bytes q ^ mask: a byte beside 2^23 is a float.
  QK_DEVICE F steps(uint32_t word, int8_t mask, int32_t zero) {
    static_assert(W == 4);
    word ^= uint32_t(uint8_t(mask ^ -128)) * 0x01010101u;  // q + 128
    return each<float>([&](int i) { return bits_to_float(byte_in(0x4b000000u, word, i)) - (0x1p23f + float(zero + 128)); });
  }
  QK_DEVICE void store_f32(float* p, F a) { global_store(p, a); }
  QK_DEVICE void store_f16(uint16_t* p, F a) {
    if constexpr (W > 1) global_store(p, words<2>([&](int i) { return to_f16x2(a.v[i], a.v[i + 1]); }));
    else global_store(p, to_f16(a.v[0]));
  }
  QK_DEVICE void store_bf16(uint16_t* p, F a) {  // round half to even; never NaN here
    if constexpr (W > 1) global_store(p, words<2>([&](int i) { return to_bf16x2(a.v[i], a.v[i + 1]); }));
    else global_store(p, uint16_t(to_bf16x2(a.v[0], 0.0f)));
  }
  QK_DEVICE void store_s8(int8_t* p, I a) {
    if constexpr (W > 1) global_store(p, words<4>([&](int i) { return bytes_of(a.v[i], a.v[i + 1], a.v[i + 2], a.v[i + 3]); }));
    else global_store(p, int8_t(a.v[0]));
  }

 private:
  // Words that hold so many values each, from body(the first of them).
  template <int Each, class Body>
  QK_DEVICE Pack<uint32_t, W / Each> words(Body body) {
    Pack<uint32_t, W / Each> r;
    QK_UNROLL for (int i = 0; i < W / Each; ++i) r.v[i] = body(i * Each);
    return r;
  }
};

}  // namespace
}  // namespace qk
