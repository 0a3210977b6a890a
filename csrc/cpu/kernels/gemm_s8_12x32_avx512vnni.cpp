// C[12x32] += a[12][k] * b[k][32] with vpdpbusd; a is stored as a ^ 0x80, so its row offset holds 128 more.
//
//            b: 2 panels x 4 k = 2 zmm
//   a row    [ acc panel 0 | acc panel 1 ]     zmm: 24 sums, 2 b, 1 broadcast of a = 27 of 32
//   12 of them, 4 k broadcast each
// Few rows use U interleaved sums along k instead, so that the 4-cycle latency of vpdpbusd is hidden.
#include "gemm_block.h"

#include "../vec/avx512.h"

namespace qk {
namespace {

struct VnniTile {
  template <int R, int P>
  QK_INLINE void run(const int8_t* a, int64_t lda, const int8_t* b, int64_t panel_bytes, int64_t k4, int32_t* acc) {
    constexpr int U = R >= 8 ? 1 : R >= 4 ? 2 : 4;  // divides 16, to which k4 is padded with zero weights
    __m512i sum[U][R][P];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) sum[u][r][p] = _mm512_setzero_si512();
    const int8_t* rows[(R + 2) / 3];  // each third row; the others by an index, so that all stay in registers
#pragma GCC unroll 4
    for (int r = 0; r < R; r += 3) rows[r / 3] = a + r * lda;
    for (const int8_t* end = b + k4 * 64; b < end; b += U * 64) {
      asm("" : "+r"(lda));  // or GCC hoists all R addresses, more than there are registers
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        __m512i bv[P];
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) bv[p] = _mm512_loadu_si512(b + p * panel_bytes + u * 64);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          int32_t four;
          __builtin_memcpy(&four, rows[r / 3] + r % 3 * lda + u * 4, 4);
          const __m512i av = _mm512_set1_epi32(four);
#pragma GCC unroll 2
          for (int p = 0; p < P; ++p) sum[u][r][p] = _mm512_dpbusd_epi32(sum[u][r][p], av, bv[p]);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < (R + 2) / 3; ++i) rows[i] += U * 4;
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        __m512i total = sum[0][r][p];
#pragma GCC unroll 4
        for (int u = 1; u < U; ++u) total = _mm512_add_epi32(total, sum[u][r][p]);
        _mm512_store_si512(acc + (r * P + p) * 16, total);
      }
  }
};

}  // namespace

void gemm_s8_12x32_avx512vnni(const GemmBlock& g) {
  int64_t j = 0;
  for (; j + 16 < g.cols; j += 32) column_of_tiles<Avx512, VnniTile, 12, 4, 2>(j, g);
  if (j < g.cols) column_of_tiles<Avx512, VnniTile, 12, 4, 1>(j, g);
}

}  // namespace qk
