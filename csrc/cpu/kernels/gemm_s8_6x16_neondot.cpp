// C[6x16] += a[6][k] * b[k][16] with sdot, signed by signed.
//
//          b: 16 channels x 4 k = 4 registers
//   a row  [ acc 0..3 | 4..7 | 8..11 | 12..15 ]     24 sums, 4 b, 1 repeated a = 29 of 32
//   6 of them, 4 k repeated each
#include "gemm_block.h"

#include "../vec/neon.h"

namespace qk {
namespace {

struct NeonTile {
  template <int R, int P>
  QK_INLINE void run(const int8_t* a, const int8_t* b, const GemmBlock& g, const Ahead&, int32_t* acc) {
    const int64_t lda = g.lda, k4 = g.k4;
    int32x4_t sum[R][4];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[r][v] = vdupq_n_s32(0);
    for_pieces(a, b, g, [&](const int8_t* x, const int8_t* w) QK_LAMBDA {
      for (int64_t k = 0; k < k4; ++k) {
        int8x16_t wv[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) wv[v] = vld1q_s8(w + k * 64 + v * 16);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
          int32_t four;
          __builtin_memcpy(&four, x + r * lda + k * 4, 4);
          const int8x16_t xv = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) sum[r][v] = vdotq_s32(sum[r][v], wv[v], xv);
        }
      }
    });
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) vst1q_s32(acc + r * 16 + v * 4, sum[r][v]);
  }
};

}  // namespace

void gemm_s8_6x16_neondot(const GemmBlock& g) { gemm_columns<Neon, NeonTile, 6, 1>(g); }

int64_t gemm_s8_6x16_neondot_peak(int64_t rounds) {
  int32x4_t sum[16];
  int8x16_t a = vdupq_n_s8(1), b = vdupq_n_s8(2);
  for (auto& s : sum) s = vdupq_n_s32(0);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      sum[j] = vdotq_s32(sum[j], a, b);
      asm volatile("" : "+w"(sum[j]));
    }
  return rounds * 16 * 32;
}

}  // namespace qk
