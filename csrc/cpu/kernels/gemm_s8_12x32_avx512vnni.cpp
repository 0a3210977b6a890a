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
  QK_INLINE void run(const int8_t* a, const int8_t* b, const GemmBlock& g, const Ahead& next, int32_t* acc) {
    constexpr int U = R * P >= 12 ? 1 : R * P >= 6 ? 2 : 4, thirds = (R + 2) / 3;
    int64_t lda = g.lda;
    const int64_t panel_bytes = g.panel_bytes, k4 = g.k4, ahead_step = next.step;
    const int8_t* ahead = next.p;
    __m512i sum[U][R][P];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) sum[u][r][p] = _mm512_setzero_si512();
    for_pieces(a, b, g, [&](const int8_t* x, const int8_t* w) QK_LAMBDA {
      const int8_t* rows[thirds];  // every third row; the others by an index, so that all stay in registers
#pragma GCC unroll 4
      for (int i = 0; i < thirds; ++i) rows[i] = x + i * 3 * lda;
      const auto step = [&](int u) QK_LAMBDA {
        __m512i wv[P];
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) wv[p] = _mm512_loadu_si512(w + p * panel_bytes + u * 64);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          int32_t four;
          __builtin_memcpy(&four, rows[r / 3] + r % 3 * lda + u * 4, 4);
          const __m512i xv = _mm512_set1_epi32(four);
#pragma GCC unroll 2
          for (int p = 0; p < P; ++p) sum[u][r][p] = _mm512_dpbusd_epi32(sum[u][r][p], xv, wv[p]);
        }
      };
      const auto advance = [&](int by) QK_LAMBDA {
        __builtin_prefetch(ahead, 0, 2);
        ahead += by * ahead_step;
        w += by * 64;
#pragma GCC unroll 4
        for (int i = 0; i < thirds; ++i) rows[i] += by * 4;
        asm("" : "+r"(lda));  // or GCC hoists all R addresses, more than there are registers
      };
      const int8_t* const end = w + k4 * 64;
      if constexpr (U > 1)
        for (; end - w >= U * 64; advance(U))
#pragma GCC unroll 4
          for (int u = 0; u < U; ++u) step(u);
      for (; w < end; advance(1)) step(0);
    });
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

void gemm_s8_12x32_avx512vnni(const GemmBlock& g) { gemm_columns<Avx512, VnniTile, 12, 2>(g); }

int64_t gemm_s8_12x32_avx512vnni_peak(int64_t rounds) {
  __m512i sum[12], a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2);
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) sum[j] = _mm512_setzero_si512();
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) asm volatile("vpdpbusd %1, %2, %0" : "+v"(sum[j]) : "v"(b), "v"(a));
  return rounds * 12 * 128;
}

}  // namespace qk
