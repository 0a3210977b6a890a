// How every int8 GEMM micro-kernel walks a block of C: panels outside, row tiles inside, sums through a small
// buffer into the shared epilogue. Tile::run<R, P> leaves the int32 sums of R rows by P panels in acc[R][P * 16].
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

// P panels of columns from j on, and what their epilogue needs: built once for all row tiles.
template <class V, int P>
struct Columns {
  static constexpr int64_t vectors = P * kPanel / V::width;
  GemmBlock g;
  Epilogue e;
  int64_t j, count;              // columns that exist
  Finisher<V> finish;
  Dequantizer<V> dequantize[vectors];

  Columns(const GemmBlock& block, int64_t first)
      : g(block), e(*block.epilogue), j(first), count(g.cols - j < P * kPanel ? g.cols - j : P * kPanel),
        finish(Finisher<V>::make(e)) {
    for (int64_t v = 0; v < vectors; ++v) dequantize[v] = Dequantizer<V>::make(e, g.n0 + j + v * V::width);
  }

  // Sums [rows][P * 16] of rows from r0 on.
  QK_METHOD void store(const int32_t* acc, int64_t r0, int64_t rows) {
    constexpr int64_t together = vectors / 2 * 2;
    if (e.out_type == DType::s8 && count == P * kPanel) {
      for (int64_t v = 0; v < together; v += 2) store_s8(acc, r0, rows, v);
      if (together < vectors) store_vector(acc, r0, rows, together);
    } else {
      for (int64_t v = 0; v * V::width < count; ++v) store_vector(acc, r0, rows, v);
    }
  }

 private:
  QK_METHOD void store_vector(const int32_t* acc, int64_t r0, int64_t rows, int64_t v) {
    const int64_t column = j + v * V::width, item = size_of(e.out_type), left = count - v * V::width;
    const Finisher<V> f = finish;  // copies that no store can alias
    Dequantizer<V> d = dequantize[v];
    const char* residual = f.residual_at(g.m0 + r0, g.n0 + column);
    const int64_t residual_step = e.residual_stride * size_of(e.residual_type);
    char* c = static_cast<char*>(g.c) + (r0 * g.c_stride + column) * item;
    for (int64_t r = 0; r < rows; ++r, c += g.c_stride * item) {
      d.use(g.row_scale[r0 + r], g.row_offset[r0 + r]);
      f(d(V::load_i32(acc + r * P * kPanel + v * V::width)), residual ? residual + r * residual_step : nullptr, left, c);
    }
    dequantize[v] = d;
  }

  // Two vectors of columns to int8, two rows at a time, so that four vectors share their packing.
  QK_METHOD void store_s8(const int32_t* acc, int64_t r0, int64_t rows, int64_t v) {
    const Finisher<V> f = finish;
    Dequantizer<V> left = dequantize[v], right = dequantize[v + 1];
    const int64_t step = g.c_stride, item = size_of(e.residual_type), zero = e.out_zero;
    const float* scale = g.row_scale + r0;
    const int32_t* offset = g.row_offset + r0;
    int8_t* c = static_cast<int8_t*>(g.c) + r0 * step + j + v * V::width;
    const char* residual = f.residual_at(g.m0 + r0, g.n0 + j + v * V::width);
    typename V::I q[2][2];
    for (int64_t r = 0; r < rows; r += 2) {
      const int64_t row[2] = {r, r + 1 < rows ? r + 1 : r};  // a last odd row is stored twice
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        left.use(scale[row[i]], offset[row[i]]);
        right.use(scale[row[i]], offset[row[i]]);
        const int32_t* sums = acc + row[i] * P * kPanel + v * V::width;
        auto y0 = left(V::load_i32(sums)), y1 = right(V::load_i32(sums + V::width));
        if (residual) {
          const char* at = residual + row[i] * e.residual_stride * item;
          y0 = f.add_residual(y0, at);
          y1 = f.add_residual(y1, at + V::width * item);
        }
        q[i][0] = f.round(y0);
        q[i][1] = f.round(y1);
      }
      V::store_s8_rows(c + row[0] * step, c + row[1] * step, q[0][0], q[0][1], q[1][0], q[1][1], int32_t(zero));
    }
    dequantize[v] = left;
    dequantize[v + 1] = right;
  }
};

template <class V, class Tile, int R, int P>
QK_INLINE void tile_at(int64_t r, const GemmBlock& g, Columns<V, P>& columns) {
  alignas(64) int32_t acc[R * P * kPanel];
  Tile::template run<R, P>(g.a + r * g.lda, g.lda, g.b + columns.j / kPanel * g.panel_bytes, g.panel_bytes, g.k4, acc);
  columns.store(acc, r, R);
}

// Row tiles of Big, then Mid, then single rows, so that a remainder costs what it holds.
template <class V, class Tile, int Big, int Mid, int P>
QK_INLINE void column_of_tiles(int64_t j, const GemmBlock& g) {
  Columns<V, P> columns(g, j);
  int64_t r = 0;
  for (; r + Big <= g.rows; r += Big) tile_at<V, Tile, Big, P>(r, g, columns);
  for (; r + Mid <= g.rows; r += Mid) tile_at<V, Tile, Mid, P>(r, g, columns);
  for (; r < g.rows; ++r) tile_at<V, Tile, 1, P>(r, g, columns);
}

}  // namespace
}  // namespace qk
