// Sixteen lanes of AVX-512 (F, BW, DQ, VL); the operations of vec/scalar.h.
#pragma once
#include <immintrin.h>

#include "../../core/epilogue.h"

namespace qk {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr int64_t width = 16;

  QK_INLINE F set1(float v) { return _mm512_set1_ps(v); }
  QK_INLINE I set1i(int32_t v) { return _mm512_set1_epi32(v); }
  QK_INLINE F load_f32(const float* p) { return _mm512_loadu_ps(p); }
  QK_INLINE __m256i load16(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  QK_INLINE F load_f16(const uint16_t* p) { return _mm512_cvtph_ps(load16(p)); }
  QK_INLINE F load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(p)), 16));
  }
  QK_INLINE I load_s8(const int8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  QK_INLINE I load_i32(const int32_t* p) { return _mm512_loadu_si512(p); }
  static constexpr int32_t dot4_offset = 128;  // x is unsigned
  QK_INLINE I dot4(I sum, I x, I w) { return _mm512_dpbusd_epi32(sum, x, w); }
  QK_INLINE F repeat_four(const float* p, int) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
  QK_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  QK_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  QK_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  QK_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  QK_INLINE F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
  QK_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  QK_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  QK_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  QK_INLINE F sqrt(F v) { return _mm512_sqrt_ps(v); }
  QK_INLINE F less(F a, F b, F x, F y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x); }
  QK_INLINE F abs(F v) { return _mm512_abs_ps(v); }
  QK_INLINE F pick(const float (&table)[8], I at) { return _mm512_permutexvar_ps(at, _mm512_broadcast_f32x8(_mm256_loadu_ps(table))); }
  QK_INLINE I addi(I a, I b) { return _mm512_add_epi32(a, b); }
  QK_INLINE I subi(I a, I b) { return _mm512_sub_epi32(a, b); }
  QK_INLINE I muli(I a, I b) { return _mm512_mullo_epi32(a, b); }
  QK_INLINE I xori(I a, I b) { return _mm512_xor_si512(a, b); }
  QK_INLINE F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  QK_INLINE I round(F v) { return _mm512_cvtps_epi32(v); }
  QK_INLINE I as_bits(F v) { return _mm512_castps_si512(v); }
  QK_INLINE F from_bits(I v) { return _mm512_castsi512_ps(v); }
  QK_INLINE I shift_23(I v) { return _mm512_srai_epi32(v, 23); }
  QK_INLINE F power_of_two(I v) { return _mm512_castsi512_ps(_mm512_slli_epi32(addi(v, set1i(127)), 23)); }
  QK_INLINE void store_f32(float* p, F v) { _mm512_storeu_ps(p, v); }
  QK_INLINE void store_f16(uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  QK_INLINE void store_bf16(uint16_t* p, F v) {
    I bits = _mm512_castps_si512(v);
    I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), set1i(1));
    I top = _mm512_srli_epi32(addi(bits, addi(odd, set1i(0x7fff))), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(top));
  }
  QK_INLINE void store_s8(int8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v));
  }
  QK_INLINE I to_rows(const I (&q)[4], int32_t zero, int8_t mask) {  // bytes, row after row
    const I z = _mm512_set1_epi16(int16_t(zero));
    const I a = _mm512_add_epi16(_mm512_packs_epi32(q[0], q[1]), z), b = _mm512_add_epi16(_mm512_packs_epi32(q[2], q[3]), z);
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_xor_si512(_mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b)), _mm512_set1_epi8(mask));
  }
  QK_INLINE void store_s8_rows(int8_t* const (&rows)[2], const I (&q)[4], int32_t zero, int8_t mask) {
    const I bytes = to_rows(q, zero, mask);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows[0]), _mm512_castsi512_si256(bytes));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows[1]), _mm512_extracti64x4_epi64(bytes, 1));
  }
  QK_INLINE void store_s8_rows(int8_t* const (&rows)[4], const I (&q)[4], int32_t zero, int8_t mask) {
    const I bytes = to_rows(q, zero, mask);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[0]), _mm512_castsi512_si128(bytes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[1]), _mm512_extracti32x4_epi32(bytes, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[2]), _mm512_extracti32x4_epi32(bytes, 2));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[3]), _mm512_extracti32x4_epi32(bytes, 3));
  }
  using B = __m512i;
  QK_INLINE B load_lanes(const int8_t* p, int64_t step) {
    const auto lane = [&](int i) QK_LAMBDA { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * step)); };
    const B two = _mm512_inserti32x4(_mm512_castsi128_si512(lane(0)), lane(1), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(two, lane(2), 2), lane(3), 3);
  }
  QK_INLINE B xor_bytes(B v, int8_t mask) { return _mm512_xor_si512(v, _mm512_set1_epi8(mask)); }
  QK_INLINE B unpack_bytes_low(B a, B b) { return _mm512_unpacklo_epi8(a, b); }
  QK_INLINE B unpack_bytes_high(B a, B b) { return _mm512_unpackhi_epi8(a, b); }
  QK_INLINE B unpack_words_low(B a, B b) { return _mm512_unpacklo_epi16(a, b); }
  QK_INLINE B unpack_words_high(B a, B b) { return _mm512_unpackhi_epi16(a, b); }
  QK_INLINE B next_lane(B a, B b) { return _mm512_alignr_epi64(b, a, 2); }
  QK_INLINE void store_bytes(int8_t* p, B v) { _mm512_storeu_si512(p, v); }
  QK_INLINE void store_s8_pixels(int8_t* p, int64_t stride, const I (&q)[4], int32_t zero, int8_t mask) {
    const I z = _mm512_set1_epi16(int16_t(zero));
    const I low = _mm512_add_epi16(_mm512_packs_epi32(q[0], q[1]), z), high = _mm512_add_epi16(_mm512_packs_epi32(q[2], q[3]), z);
    const I pixels = _mm512_xor_si512(_mm512_packs_epi16(low, high), _mm512_set1_epi8(mask));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_castsi512_si128(pixels));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + stride), _mm512_extracti32x4_epi32(pixels, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 2 * stride), _mm512_extracti32x4_epi32(pixels, 2));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 3 * stride), _mm512_extracti32x4_epi32(pixels, 3));
  }
  QK_INLINE void lanes_to_pixels(const F (&in)[4], F (&out)[4]) {
    const F a = _mm512_shuffle_f32x4(in[0], in[1], 0x44), b = _mm512_shuffle_f32x4(in[2], in[3], 0x44);
    const F c = _mm512_shuffle_f32x4(in[0], in[1], 0xee), d = _mm512_shuffle_f32x4(in[2], in[3], 0xee);
    out[0] = _mm512_shuffle_f32x4(a, b, 0x88);
    out[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
    out[2] = _mm512_shuffle_f32x4(c, d, 0x88);
    out[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
  // Sixteen tables of sixteen, all looked up by the lower four bits; the upper four choose between the results.
  QK_INLINE int64_t lookup_bytes(const int8_t* table, int64_t count, const int8_t* x, int8_t* y) {
    B rows[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i)));
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
      const B v = _mm512_loadu_si512(x + i), low = _mm512_and_si512(v, _mm512_set1_epi8(15));
      __mmask64 bit[4];
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) bit[b] = _mm512_test_epi8_mask(v, _mm512_set1_epi8(char(16 << b)));
      B found[8];
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) found[r] = _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(rows[2 * r], low), bit[0], rows[2 * r + 1], low);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) found[r] = _mm512_mask_blend_epi8(bit[1], found[2 * r], found[2 * r + 1]);
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) found[r] = _mm512_mask_blend_epi8(bit[2], found[2 * r], found[2 * r + 1]);
      _mm512_storeu_si512(y + i, _mm512_mask_blend_epi8(bit[3], found[0], found[1]));
    }
    return i;
  }
  QK_INLINE void store_i32(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  using W = __m512i;
  QK_INLINE W load_words(const int8_t* p, int8_t mask) {
    return _mm512_cvtepi8_epi16(_mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_set1_epi8(mask)));
  }
  QK_INLINE void store_words(int16_t* p, W v) { _mm512_storeu_si512(p, v); }
  QK_INLINE W addw(W a, W b) { return _mm512_add_epi16(a, b); }
  QK_INLINE W subw(W a, W b) { return _mm512_sub_epi16(a, b); }
  template <int Bits>
  QK_INLINE W shlw(W v) { return _mm512_slli_epi16(v, Bits); }
  template <int Bits>
  QK_INLINE I shli(I v) { return _mm512_slli_epi32(v, Bits); }
  template <int Bits>
  QK_INLINE I sari(I v) { return _mm512_srai_epi32(v, Bits); }
  QK_INLINE I dot2(I sum, I x, I w) { return _mm512_dpwssd_epi32(sum, x, w); }
};

}  // namespace
}  // namespace qk
