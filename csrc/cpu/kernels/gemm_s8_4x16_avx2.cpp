// C[4x16] += a[4][k] * b[k][16] with vpmaddubsw(|a|, sign(b, a)), vpmaddwd.
//
//          b: 16 channels x 4 k = 2 ymm        Exact: b never holds -128, so the largest pair is
//   a row  [ acc 0..7 | acc 8..15 ]            2 * 128 * 127 = 32512 < 32767.
//   4 of them                                  ymm: 8 sums, 2 b, a, |a|, ones, 2 scratch = 15 of 16
#include "gemm_block.h"

#include "../vec/avx2.h"

namespace qk {
namespace {

QK_INLINE __m256i load256(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

QK_INLINE __m256i dot4(__m256i sum, __m256i magnitude, __m256i a, __m256i b) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(b, a));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

struct Avx2Tile {
  template <int R, int P>
  QK_INLINE void run(const int8_t* a, const int8_t* b, const GemmBlock& g, const Ahead&, int32_t* acc) {
    const int64_t lda = g.lda, k4 = g.k4;
    __m256i sum[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for_pieces(a, b, g, [&](const int8_t* x, const int8_t* w) QK_LAMBDA {
      for (int64_t k = 0; k < k4; ++k) {
        const __m256i b0 = load256(w + k * 64), b1 = load256(w + k * 64 + 32);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          int32_t four;
          __builtin_memcpy(&four, x + r * lda + k * 4, 4);
          const __m256i av = _mm256_set1_epi32(four), magnitude = _mm256_abs_epi8(av);
          sum[r][0] = dot4(sum[r][0], magnitude, av, b0);
          sum[r][1] = dot4(sum[r][1], magnitude, av, b1);
        }
      }
    });
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      Avx2::store_i32(acc + r * 16, sum[r][0]);
      Avx2::store_i32(acc + r * 16 + 8, sum[r][1]);
    }
  }
};

}  // namespace

void gemm_s8_4x16_avx2(const GemmBlock& g) { gemm_columns<Avx2, Avx2Tile, 4, 1>(g); }

int64_t gemm_s8_4x16_avx2_peak(int64_t rounds) {
  __m256i sum[8], a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(2);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) sum[j] = _mm256_setzero_si256();
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
      asm volatile("" : "+x"(sum[j]), "+x"(a));  // or one product would do for all sums
    }
  }
  return rounds * 8 * 64;
}

}  // namespace qk
