// Eight lanes of AVX2, FMA and F16C; the operations of vec/scalar.h.
#pragma once
#include <immintrin.h>

#include "../../core/epilogue.h"

namespace qk {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr int64_t width = 8;

  QK_INLINE F set1(float v) { return _mm256_set1_ps(v); }
  QK_INLINE I set1i(int32_t v) { return _mm256_set1_epi32(v); }
  QK_INLINE F load_f32(const float* p) { return _mm256_loadu_ps(p); }
  QK_INLINE __m128i load16(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  QK_INLINE F load_f16(const uint16_t* p) { return _mm256_cvtph_ps(load16(p)); }
  QK_INLINE F load_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
  }
  QK_INLINE I load_s8(const int8_t* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  QK_INLINE I load_i32(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static constexpr int32_t dot4_offset = 0;
  QK_INLINE I dot4(I sum, I x, I w) {  // w never holds -128, so pairs stay below 2^15
    const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  QK_INLINE F repeat_four(const float* p, int) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
  QK_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  QK_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  QK_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  QK_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  QK_INLINE F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
  QK_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  QK_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
  QK_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  QK_INLINE F sqrt(F v) { return _mm256_sqrt_ps(v); }
  QK_INLINE F less(F a, F b, F x, F y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
  QK_INLINE F abs(F v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
  QK_INLINE F pick(const float (&table)[8], I at) { return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), at); }
  QK_INLINE I addi(I a, I b) { return _mm256_add_epi32(a, b); }
  QK_INLINE I subi(I a, I b) { return _mm256_sub_epi32(a, b); }
  QK_INLINE I muli(I a, I b) { return _mm256_mullo_epi32(a, b); }
  QK_INLINE I xori(I a, I b) { return _mm256_xor_si256(a, b); }
  QK_INLINE F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  QK_INLINE I round(F v) { return _mm256_cvtps_epi32(v); }
  QK_INLINE I as_bits(F v) { return _mm256_castps_si256(v); }
  QK_INLINE F from_bits(I v) { return _mm256_castsi256_ps(v); }
  QK_INLINE I shift_23(I v) { return _mm256_srai_epi32(v, 23); }
  QK_INLINE F power_of_two(I v) { return _mm256_castsi256_ps(_mm256_slli_epi32(addi(v, set1i(127)), 23)); }
  QK_INLINE void store_f32(float* p, F v) { _mm256_storeu_ps(p, v); }
  QK_INLINE void store_f16(uint16_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  QK_INLINE void store_bf16(uint16_t* p, F v) {
    I bits = _mm256_castps_si256(v);
    I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), set1i(1));
    I top = _mm256_srli_epi32(addi(bits, addi(odd, set1i(0x7fff))), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1)));
  }
  QK_INLINE void store_s8(int8_t* p, I v) {
    __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
  }
  QK_INLINE I to_rows(const I (&q)[4], int32_t zero, int8_t mask) {  // bytes, row after row
    const I z = _mm256_set1_epi16(int16_t(zero));
    const I a = _mm256_add_epi16(_mm256_packs_epi32(q[0], q[1]), z), b = _mm256_add_epi16(_mm256_packs_epi32(q[2], q[3]), z);
    const I order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_xor_si256(_mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order), _mm256_set1_epi8(mask));
  }
  QK_INLINE void store_s8_rows(int8_t* const (&rows)[2], const I (&q)[4], int32_t zero, int8_t mask) {
    const I bytes = to_rows(q, zero, mask);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[0]), _mm256_castsi256_si128(bytes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[1]), _mm256_extracti128_si256(bytes, 1));
  }
  QK_INLINE void store_s8_rows(int8_t* const (&rows)[4], const I (&q)[4], int32_t zero, int8_t mask) {
    const I bytes = to_rows(q, zero, mask);
    for (int i = 0; i < 2; ++i) {
      const __m128i two = i ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(rows[2 * i]), two);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(rows[2 * i + 1]), _mm_unpackhi_epi64(two, two));
    }
  }
  using B = __m256i;
  QK_INLINE B load_lanes(const int8_t* p, int64_t step) {
    return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(p + step), reinterpret_cast<const __m128i*>(p));
  }
  QK_INLINE B xor_bytes(B v, int8_t mask) { return _mm256_xor_si256(v, _mm256_set1_epi8(mask)); }
  QK_INLINE B unpack_bytes_low(B a, B b) { return _mm256_unpacklo_epi8(a, b); }
  QK_INLINE B unpack_bytes_high(B a, B b) { return _mm256_unpackhi_epi8(a, b); }
  QK_INLINE B unpack_words_low(B a, B b) { return _mm256_unpacklo_epi16(a, b); }
  QK_INLINE B unpack_words_high(B a, B b) { return _mm256_unpackhi_epi16(a, b); }
  QK_INLINE B next_lane(B a, B b) { return _mm256_permute2x128_si256(a, b, 0x21); }
  QK_INLINE void store_bytes(int8_t* p, B v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  QK_INLINE void store_s8_pixels(int8_t* p, int64_t stride, const I (&q)[4], int32_t zero, int8_t mask) {
    const I z = _mm256_set1_epi16(int16_t(zero));
    const I low = _mm256_add_epi16(_mm256_packs_epi32(q[0], q[1]), z), high = _mm256_add_epi16(_mm256_packs_epi32(q[2], q[3]), z);
    const I pixels = _mm256_xor_si256(_mm256_packs_epi16(low, high), _mm256_set1_epi8(mask));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(pixels));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + stride), _mm256_extracti128_si256(pixels, 1));
  }
  QK_INLINE void lanes_to_pixels(const F (&in)[4], F (&out)[4]) {
    out[0] = _mm256_permute2f128_ps(in[0], in[1], 0x20);
    out[1] = _mm256_permute2f128_ps(in[2], in[3], 0x20);
    out[2] = _mm256_permute2f128_ps(in[0], in[1], 0x31);
    out[3] = _mm256_permute2f128_ps(in[2], in[3], 0x31);
  }
  QK_INLINE int64_t lookup_bytes(const int8_t*, int64_t, const int8_t*, int8_t*) { return 0; }
  QK_INLINE void store_i32(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  using W = __m256i;
  QK_INLINE W load_words(const int8_t* p, int8_t mask) {
    return _mm256_cvtepi8_epi16(_mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), _mm_set1_epi8(mask)));
  }
  QK_INLINE void store_words(int16_t* p, W v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  QK_INLINE W addw(W a, W b) { return _mm256_add_epi16(a, b); }
  QK_INLINE W subw(W a, W b) { return _mm256_sub_epi16(a, b); }
  template <int Bits>
  QK_INLINE W shlw(W v) { return _mm256_slli_epi16(v, Bits); }
  template <int Bits>
  QK_INLINE I shli(I v) { return _mm256_slli_epi32(v, Bits); }
  template <int Bits>
  QK_INLINE I sari(I v) { return _mm256_srai_epi32(v, Bits); }
  QK_INLINE I dot2(I sum, I x, I w) { return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w)); }
};

}  // namespace
}  // namespace qk
