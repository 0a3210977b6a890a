// How every int8 GEMM micro-kernel walks a block of C: panels outside, row tiles inside, sums through a small
// buffer into the shared epilogue. Tile::run<R, P> leaves the int32 sums of R rows by P panels in acc[R][P * 16].
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

template <class V>
QK_INLINE void store_tile(const int32_t* acc, int64_t r0, int64_t rows, int64_t j0, int64_t panels, const GemmBlock& block) {
  const GemmBlock g = block;      // copies that no store can alias
  const Epilogue e = *g.epilogue;
  const auto finish = Finisher<V>::make(e);
  const int64_t cols = g.cols - j0 < panels * kPanel ? g.cols - j0 : panels * kPanel;
  const int64_t item = size_of(e.out_type);
  for (int64_t j = 0; j < cols; j += V::width) {
    auto dequantize = Dequantizer<V>::make(e, g.n0 + j0 + j);
    for (int64_t r = r0; r < r0 + rows; ++r) {
      char* c = static_cast<char*>(g.c) + (r * g.c_stride + j0 + j) * item;
      dequantize.use(g.row_scale[r], g.row_offset[r]);
      finish(dequantize(V::load_i32(acc + (r - r0) * panels * kPanel + j)), g.m0 + r, g.n0 + j0 + j, cols - j, c);
    }
  }
}

template <class V, class Tile, int R, int P>
QK_INLINE void tile_at(int64_t r, int64_t rows, int64_t j, const GemmBlock& g) {
  alignas(64) int32_t acc[R * P * kPanel];
  Tile::template run<R, P>(g.a + r * g.lda, g.lda, g.b + j / kPanel * g.panel_bytes, g.panel_bytes, g.k4, acc);
  store_tile<V>(acc, r, rows, j, P, g);
}

// Row tiles of Big, then Mid, then single rows, so that a remainder costs what it holds.
template <class V, class Tile, int Big, int Mid, int P>
QK_INLINE void column_of_tiles(int64_t j, const GemmBlock& g) {
  int64_t r = 0;
  for (; r + Big <= g.rows; r += Big) tile_at<V, Tile, Big, P>(r, Big, j, g);
  for (; r + Mid <= g.rows; r += Mid) tile_at<V, Tile, Mid, P>(r, Mid, j, g);
  for (; r < g.rows; ++r) tile_at<V, Tile, 1, P>(r, 1, j, g);
}

}  // namespace
}  // namespace qk
