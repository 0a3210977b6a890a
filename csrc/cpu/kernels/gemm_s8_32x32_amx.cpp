// C[32x32] += a[32][k] * b[k][32] with tdpbssd on 2 x 2 tiles of 16 x 16.
//
//              tmm6: b panel 0   tmm7: b panel 1     one k step is 64 deep: a tile is 16 rows x 64 bytes as
//   tmm4: a 0..15    tmm0              tmm1          they lie, b tile 16 groups of four k x 16 channels
//   tmm5: a 16..31   tmm2              tmm3
// Rows outside, panels inside: C is written along its rows while the row panel of a stays in L1.
#include "gemm_block.h"

#include "../tile.h"

#if defined(QK_AMX_EMULATED)
#include "../vec/scalar.h"
#else
#include "../vec/avx512.h"
#endif

namespace qk {
namespace {

#if defined(QK_AMX_EMULATED)
using Vec = Scalar;
#else
using Vec = Avx512;
#endif

// A x P tiles of C; acc[A * 16][P * 16].
template <int A, int P>
QK_INLINE void multiply(Tiles& t, const int8_t* a, const int8_t* b, const GemmBlock& g, int32_t* acc) {
  const int64_t lda = g.lda, panel_bytes = g.panel_bytes, k64 = ceil_div(g.k4, 16);
  t.zero<0>();
  if (P > 1) t.zero<1>();
  if (A > 1) t.zero<2>();
  if (A > 1 && P > 1) t.zero<3>();
  for_pieces(a, b, g, [&](const int8_t* x, const int8_t* w) QK_LAMBDA {
    for (int64_t k = 0; k < k64; ++k) {
      t.load<6>(w + k * 1024, 64);
      t.load<4>(x + k * 64, lda);
      t.dot<0, 4, 6>();
      if (P > 1) {
        t.load<7>(w + panel_bytes + k * 1024, 64);
        t.dot<1, 4, 7>();
      }
      if (A > 1) {
        t.load<5>(x + 16 * lda + k * 64, lda);
        t.dot<2, 5, 6>();
        if (P > 1) t.dot<3, 5, 7>();
      }
    }
  });
  constexpr int64_t stride = P * 64;
  t.store<0>(acc, stride);
  if (P > 1) t.store<1>(acc + 16, stride);
  if (A > 1) t.store<2>(acc + 16 * P * 16, stride);
  if (A > 1 && P > 1) t.store<3>(acc + 16 * P * 16 + 16, stride);
}

template <int A, int P>
QK_INLINE void block_at(Tiles& t, int64_t line, int64_t r, int64_t j, const GemmBlock& g) {
  alignas(64) int32_t acc[A * 16 * P * 16];
  const int64_t rows = g.rows - r < A * 16 ? g.rows - r : A * 16;
  multiply<A, P>(t, g.a + line * g.line_stride + r * g.lda, g.b + j / kPanel * g.panel_bytes, g, acc);
  Columns<Vec, P>(g, j).store(acc, line * g.rows + r, rows);
}

template <int A>
QK_INLINE void row_of_blocks(Tiles& t, int64_t line, int64_t r, const GemmBlock& g) {
  int64_t j = 0;
  for (; j + 16 < g.cols; j += 32) block_at<A, 2>(t, line, r, j, g);
  if (j < g.cols) block_at<A, 1>(t, line, r, j, g);
}

}  // namespace

#if defined(QK_AMX_EMULATED)
void gemm_s8_32x32_amx_emulated(const GemmBlock& g) {
#else
void gemm_s8_32x32_amx(const GemmBlock& g) {
#endif
  Tiles tiles;
  for (int64_t line = 0; line < g.lines; ++line) {
    int64_t r = 0;
    for (; r + 16 < g.rows; r += 32) row_of_blocks<2>(tiles, line, r, g);
    if (r < g.rows) row_of_blocks<1>(tiles, line, r, g);
  }
}

#if defined(QK_AMX_EMULATED)
int64_t gemm_s8_32x32_amx_emulated_peak(int64_t rounds) {
#else
int64_t gemm_s8_32x32_amx_peak(int64_t rounds) {
#endif
  Tiles tiles;
  alignas(64) const int8_t zeros[16 * 64] = {};
  tiles.load<4>(zeros, 64);
  tiles.load<5>(zeros, 64);
  tiles.load<6>(zeros, 64);
  tiles.load<7>(zeros, 64);
  tiles.zero<0>();
  tiles.zero<1>();
  tiles.zero<2>();
  tiles.zero<3>();
  for (int64_t i = 0; i < rounds; ++i) {
    tiles.dot<0, 4, 6>();
    tiles.dot<1, 4, 7>();
    tiles.dot<2, 5, 6>();
    tiles.dot<3, 5, 7>();
  }
  return rounds * 4 * 16 * 16 * 64 * 2;
}

}  // namespace qk
