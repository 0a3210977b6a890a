// One lane in plain C++: the vector type of the scalar kernels, and what the wider ones must equal.
#pragma once
#include <cstdint>

#include "../../core/epilogue.h"

namespace qk {
namespace {

QK_INLINE float f16_to_f32(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
  float magnitude;
  if (exponent == 31) {
    const uint32_t bits = 0x7f800000u | mantissa << 13;
    __builtin_memcpy(&magnitude, &bits, 4);
  } else if (exponent == 0) {
    magnitude = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24
  } else {
    const uint32_t bits = (exponent + 112) << 23 | mantissa << 13;
    __builtin_memcpy(&magnitude, &bits, 4);
  }
  uint32_t bits;
  __builtin_memcpy(&bits, &magnitude, 4);
  bits |= sign;
  __builtin_memcpy(&magnitude, &bits, 4);
  return magnitude;
}

QK_INLINE uint16_t f32_to_f16(float f) {  // round half to even; never NaN here (the clamp removed it)
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and more round to infinity
  if (bits < 0x38800000) {                       // a denormal half: let the float adder round at 2^-24
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    __builtin_memcpy(&bits, &magnitude, 4);
    return sign | uint16_t(bits - 0x3f000000);
  }
  return sign | uint16_t((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

// At any address, as the vector types do.
template <class T>
QK_INLINE T read_any(const T* p) {
  T v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
QK_INLINE void write_any(T* p, T v) { __builtin_memcpy(p, &v, sizeof v); }

struct Scalar {
  using F = float;
  using I = int32_t;
  static constexpr int64_t width = 1;

  QK_INLINE F set1(float v) { return v; }
  QK_INLINE I set1i(int32_t v) { return v; }
  QK_INLINE F load_f32(const float* p) { return read_any(p); }
  QK_INLINE F load_f16(const uint16_t* p) { return f16_to_f32(read_any(p)); }
  QK_INLINE F load_bf16(const uint16_t* p) {
    const uint32_t bits = uint32_t(read_any(p)) << 16;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
  }
  QK_INLINE I load_s8(const int8_t* p) { return *p; }
  QK_INLINE I load_i32(const int32_t* p) { return read_any(p); }
  // sum + the dot product of four bytes each: x with dot4_offset added, unsigned where that is 128, and w.
  static constexpr int32_t dot4_offset = 0;
  QK_INLINE I dot4(I sum, I x, I w) {
    for (int i = 0; i < 32; i += 8) sum += int8_t(uint32_t(x) >> i) * int8_t(uint32_t(w) >> i);
    return sum;
  }
  QK_INLINE F repeat_four(const float* p, int v) { return p[v % 4]; }  // the v-th vector of p[0..3] over and over
  QK_INLINE F add(F a, F b) { return a + b; }
  QK_INLINE F sub(F a, F b) { return a - b; }
  QK_INLINE F mul(F a, F b) { return a * b; }
  QK_INLINE F fma(F a, F b, F c) { return __builtin_fmaf(a, b, c); }
  QK_INLINE F fnma(F a, F b, F c) { return __builtin_fmaf(-a, b, c); }  // c - a * b
  QK_INLINE F max(F a, F b) { return a > b ? a : b; }
  QK_INLINE F min(F a, F b) { return a < b ? a : b; }
  QK_INLINE F div(F a, F b) { return a / b; }
  QK_INLINE F sqrt(F v) { return __builtin_sqrtf(v); }
  QK_INLINE F less(F a, F b, F x, F y) { return a < b ? x : y; }  // y where unordered
  QK_INLINE F abs(F v) { return __builtin_fabsf(v); }
  QK_INLINE F pick(const float (&table)[8], I at) { return table[at & 7]; }
  QK_INLINE I addi(I a, I b) { return int32_t(uint32_t(a) + uint32_t(b)); }
  QK_INLINE I subi(I a, I b) { return int32_t(uint32_t(a) - uint32_t(b)); }
  QK_INLINE I muli(I a, I b) { return int32_t(uint32_t(a) * uint32_t(b)); }
  QK_INLINE I xori(I a, I b) { return a ^ b; }
  QK_INLINE F to_float(I v) { return float(v); }
  QK_INLINE I round(F v) { return int32_t(__builtin_rintf(v)); }
  QK_INLINE I as_bits(F v) {
    int32_t bits;
    __builtin_memcpy(&bits, &v, 4);
    return bits;
  }
  QK_INLINE F from_bits(I v) {
    float f;
    __builtin_memcpy(&f, &v, 4);
    return f;
  }
  QK_INLINE I shift_23(I v) { return v >> 23; }  // with its sign: from bits to exponents
  QK_INLINE F power_of_two(I v) {  // of [-127, 127]; 2^-127 counts as 0
    const uint32_t bits = uint32_t(v + 127) << 23;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
  }
  QK_INLINE void store_f32(float* p, F v) { write_any(p, v); }
  QK_INLINE void store_f16(uint16_t* p, F v) { write_any(p, f32_to_f16(v)); }
  QK_INLINE void store_bf16(uint16_t* p, F v) {
    uint32_t bits;
    __builtin_memcpy(&bits, &v, 4);
    write_any(p, uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16));
  }
  QK_INLINE void store_s8(int8_t* p, I v) { *p = int8_t(v); }  // v in [-128, 127]
  // q + zero to two rows of two vectors, or to four rows of one; every sum in [-128, 127].
  QK_INLINE void store_s8_rows(int8_t* const (&rows)[2], const I (&q)[4], int32_t zero, int8_t mask) {
    for (int i = 0; i < 4; ++i) rows[i / 2][i % 2] = int8_t(q[i] + zero) ^ mask;
  }
  QK_INLINE void store_s8_rows(int8_t* const (&rows)[4], const I (&q)[4], int32_t zero, int8_t mask) {
    for (int i = 0; i < 4; ++i) *rows[i] = int8_t(q[i] + zero) ^ mask;
  }
  // For kernels/depthwise.h, whose vectors hold 16 channels of one or more windows, 128 bits each. Columns to quads:
  typedef int8_t B __attribute__((vector_size(16), may_alias));
  typedef int16_t Words __attribute__((vector_size(16), may_alias));
  QK_INLINE B load_lanes(const int8_t* p, int64_t) {  // 16 bytes for each window, the second argument apart
    B v;
    __builtin_memcpy(&v, p, 16);
    return v;
  }
  QK_INLINE B xor_bytes(B v, int8_t mask) { return v ^ mask; }
  QK_INLINE B unpack_bytes_low(B a, B b) {
    return __builtin_shuffle(a, b, B{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
  }
  QK_INLINE B unpack_bytes_high(B a, B b) {
    return __builtin_shuffle(a, b, B{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
  }
  QK_INLINE B unpack_words_low(B a, B b) { return B(__builtin_shuffle(Words(a), Words(b), Words{0, 8, 1, 9, 2, 10, 3, 11})); }
  QK_INLINE B unpack_words_high(B a, B b) { return B(__builtin_shuffle(Words(a), Words(b), Words{4, 12, 5, 13, 6, 14, 7, 15})); }
  QK_INLINE B next_lane(B, B b) { return b; }  // windows 1, 2, ... of a, then the first of b
  QK_INLINE void store_bytes(int8_t* p, B v) { __builtin_memcpy(p, &v, 16); }
  // Sixteen channels + zero to each window's pixel, `stride` bytes apart; and from channels by windows to each pixel's
  // channels side by side. Here a vector is one channel of one window.
  QK_INLINE void store_s8_pixels(int8_t* p, int64_t, const I (&q)[16], int32_t zero, int8_t mask) {
    for (int i = 0; i < 16; ++i) p[i] = int8_t(q[i] + zero) ^ mask;
  }
  QK_INLINE void lanes_to_pixels(const F (&in)[16], F (&out)[16]) {
    for (int i = 0; i < 16; ++i) out[i] = in[i];
  }
  // table[256] of as many of `count` unsigned bytes as vectors hold; returns how many that were.
  QK_INLINE int64_t lookup_bytes(const int8_t*, int64_t, const int8_t*, int8_t*) { return 0; }
  QK_INLINE void store_i32(int32_t* p, I v) { write_any(p, v); }
  // Words serve kernels/winograd.h: W holds 2 * width words, of which an I holds two a lane. Sums wrap.
  typedef uint16_t W __attribute__((vector_size(4), may_alias));
  QK_INLINE W load_words(const int8_t* p, int8_t mask) {  // of bytes that were XORed with mask
    return W{uint16_t(int8_t(p[0] ^ mask)), uint16_t(int8_t(p[1] ^ mask))};
  }
  QK_INLINE void store_words(int16_t* p, W v) { __builtin_memcpy(p, &v, 4); }
  QK_INLINE W addw(W a, W b) { return a + b; }
  QK_INLINE W subw(W a, W b) { return a - b; }
  template <int Bits>
  QK_INLINE W shlw(W v) { return v << Bits; }
  template <int Bits>
  QK_INLINE I shli(I v) { return int32_t(uint32_t(v) << Bits); }
  template <int Bits>
  QK_INLINE I sari(I v) { return v >> Bits; }
  // sum + the products of two words each, whose sum stays below 2^31.
  QK_INLINE I dot2(I sum, I x, I w) {
    const int32_t low = int16_t(x) * int16_t(w), high = int16_t(uint32_t(x) >> 16) * int16_t(uint32_t(w) >> 16);
    return addi(sum, low + high);
  }
};

}  // namespace
}  // namespace qk
