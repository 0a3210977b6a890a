// Four lanes of AArch64 NEON with dot products; the operations of vec/scalar.h.
#pragma once
#include <arm_neon.h>

#include "../../core/epilogue.h"

namespace qk {
namespace {

struct Neon {
  using F = float32x4_t;
  using I = int32x4_t;
  static constexpr int64_t width = 4;

  QK_INLINE F set1(float v) { return vdupq_n_f32(v); }
  QK_INLINE I set1i(int32_t v) { return vdupq_n_s32(v); }
  QK_INLINE F load_f32(const float* p) { return vld1q_f32(p); }
  QK_INLINE F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  QK_INLINE F load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  QK_INLINE I load_s8(const int8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
  }
  QK_INLINE I load_i32(const int32_t* p) { return vld1q_s32(p); }
  static constexpr int32_t dot4_offset = 0;
  QK_INLINE I dot4(I sum, I x, I w) { return vdotq_s32(sum, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(w)); }
  QK_INLINE F repeat_four(const float* p, int) { return vld1q_f32(p); }
  QK_INLINE F add(F a, F b) { return vaddq_f32(a, b); }
  QK_INLINE F sub(F a, F b) { return vsubq_f32(a, b); }
  QK_INLINE F mul(F a, F b) { return vmulq_f32(a, b); }
  QK_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  QK_INLINE F fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); }  // c - a * b
  QK_INLINE F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }  // vmaxq would keep a NaN
  QK_INLINE F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  QK_INLINE F div(F a, F b) { return vdivq_f32(a, b); }
  QK_INLINE F sqrt(F v) { return vsqrtq_f32(v); }
  QK_INLINE F less(F a, F b, F x, F y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
  QK_INLINE F abs(F v) { return vabsq_f32(v); }
  QK_INLINE F pick(const float (&table)[8], I at) {
    const I bytes = vmlaq_s32(vdupq_n_s32(0x03020100), vandq_s32(at, vdupq_n_s32(7)), vdupq_n_s32(0x04040404));
    const uint8x16x2_t rows{{vreinterpretq_u8_f32(vld1q_f32(table)), vreinterpretq_u8_f32(vld1q_f32(table + 4))}};
    return vreinterpretq_f32_u8(vqtbl2q_u8(rows, vreinterpretq_u8_s32(bytes)));
  }
  QK_INLINE I addi(I a, I b) { return vaddq_s32(a, b); }
  QK_INLINE I subi(I a, I b) { return vsubq_s32(a, b); }
  QK_INLINE I muli(I a, I b) { return vmulq_s32(a, b); }
  QK_INLINE I xori(I a, I b) { return veorq_s32(a, b); }
  QK_INLINE F to_float(I v) { return vcvtq_f32_s32(v); }
  QK_INLINE I round(F v) { return vcvtnq_s32_f32(v); }
  QK_INLINE I as_bits(F v) { return vreinterpretq_s32_f32(v); }
  QK_INLINE F from_bits(I v) { return vreinterpretq_f32_s32(v); }
  QK_INLINE I shift_23(I v) { return vshrq_n_s32(v, 23); }
  QK_INLINE F power_of_two(I v) { return vreinterpretq_f32_s32(vshlq_n_s32(addi(v, set1i(127)), 23)); }
  QK_INLINE void store_f32(float* p, F v) { vst1q_f32(p, v); }
  QK_INLINE void store_f16(uint16_t* p, F v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  QK_INLINE void store_bf16(uint16_t* p, F v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    vst1_u16(p, vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16));
  }
  QK_INLINE void store_s8(int8_t* p, I v) {
    const int16x4_t half = vqmovn_s32(v);
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(half, half));
    __builtin_memcpy(p, &bytes, 4);
  }
  QK_INLINE int8x8_t narrow(I a, I b, int16x8_t zero) {
    return vqmovn_s16(vaddq_s16(vcombine_s16(vqmovn_s32(a), vqmovn_s32(b)), zero));
  }
  QK_INLINE void store_s8_rows(int8_t* const (&rows)[2], const I (&q)[4], int32_t zero, int8_t mask) {
    const int16x8_t z = vdupq_n_s16(int16_t(zero));
    for (int i = 0; i < 2; ++i) vst1_s8(rows[i], veor_s8(narrow(q[2 * i], q[2 * i + 1], z), vdup_n_s8(mask)));
  }
  QK_INLINE void store_s8_rows(int8_t* const (&rows)[4], const I (&q)[4], int32_t zero, int8_t mask) {
    const int16x8_t z = vdupq_n_s16(int16_t(zero));
    for (int i = 0; i < 4; i += 2) {
      const int8x8_t two = veor_s8(narrow(q[i], q[i + 1], z), vdup_n_s8(mask));
      __builtin_memcpy(rows[i], &two, 4);
      __builtin_memcpy(rows[i + 1], reinterpret_cast<const char*>(&two) + 4, 4);
    }
  }
  using B = int8x16_t;
  QK_INLINE B load_lanes(const int8_t* p, int64_t) { return vld1q_s8(p); }
  QK_INLINE B xor_bytes(B v, int8_t mask) { return veorq_s8(v, vdupq_n_s8(mask)); }
  QK_INLINE B unpack_bytes_low(B a, B b) { return vzip1q_s8(a, b); }
  QK_INLINE B unpack_bytes_high(B a, B b) { return vzip2q_s8(a, b); }
  QK_INLINE B unpack_words_low(B a, B b) {
    return vreinterpretq_s8_s16(vzip1q_s16(vreinterpretq_s16_s8(a), vreinterpretq_s16_s8(b)));
  }
  QK_INLINE B unpack_words_high(B a, B b) {
    return vreinterpretq_s8_s16(vzip2q_s16(vreinterpretq_s16_s8(a), vreinterpretq_s16_s8(b)));
  }
  QK_INLINE B next_lane(B, B b) { return b; }
  QK_INLINE void store_bytes(int8_t* p, B v) { vst1q_s8(p, v); }
  QK_INLINE void store_s8_pixels(int8_t* p, int64_t, const I (&q)[4], int32_t zero, int8_t mask) {
    const int16x8_t z = vdupq_n_s16(int16_t(zero));
    vst1q_s8(p, veorq_s8(vcombine_s8(narrow(q[0], q[1], z), narrow(q[2], q[3], z)), vdupq_n_s8(mask)));
  }
  QK_INLINE void lanes_to_pixels(const F (&in)[4], F (&out)[4]) {
    for (int i = 0; i < 4; ++i) out[i] = in[i];
  }
  QK_INLINE int64_t lookup_bytes(const int8_t*, int64_t, const int8_t*, int8_t*) { return 0; }
  QK_INLINE void store_i32(int32_t* p, I v) { vst1q_s32(p, v); }
  using W = uint16x8_t;
  QK_INLINE W load_words(const int8_t* p, int8_t mask) {
    return vreinterpretq_u16_s16(vmovl_s8(veor_s8(vld1_s8(p), vdup_n_s8(mask))));
  }
  QK_INLINE void store_words(int16_t* p, W v) { vst1q_s16(p, vreinterpretq_s16_u16(v)); }
  QK_INLINE W addw(W a, W b) { return vaddq_u16(a, b); }
  QK_INLINE W subw(W a, W b) { return vsubq_u16(a, b); }
  template <int Bits>
  QK_INLINE W shlw(W v) { return vshlq_n_u16(v, Bits); }
  template <int Bits>
  QK_INLINE I shli(I v) { return vshlq_n_s32(v, Bits); }
  template <int Bits>
  QK_INLINE I sari(I v) { return vshrq_n_s32(v, Bits); }
  QK_INLINE I dot2(I sum, I x, I w) {
    const int16x8_t a = vreinterpretq_s16_s32(x), b = vreinterpretq_s16_s32(w);
    return addi(sum, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)));
  }
};

}  // namespace
}  // namespace qk
