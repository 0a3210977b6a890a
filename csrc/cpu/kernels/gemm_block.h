// How every int8 GEMM micro-kernel walks a block of C: panels outside, row tiles inside, sums through a small buffer
// into the shared epilogue. Tile::run<R, P>(a, b, block, ahead, acc) leaves the sums of R rows by P panels in acc[R][P * 16].
#pragma once
#include <utility>

#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

// body(x, w) for every piece of K: its values in the first row of a tile, and in the first panel.
template <class Body>
QK_INLINE void for_pieces(const int8_t* a, const int8_t* b, const GemmBlock& g, Body body) {
  for (int64_t i = 0; i < g.piece_rows; ++i)
    for (int64_t j = 0; j < g.piece_columns; ++j, b += g.k4 * 64) body(a + i * g.piece_row_stride + j * g.piece_column_stride, b);
}

// The panels behind those at hand, which a tile asks for step by step of K, `step` bytes a step: weights that lie beyond
// L2 are there when their turn comes. Nothing where tiles are too few to ask for all in time.
struct Ahead {
  const int8_t* p;
  int64_t step;

  QK_INLINE Ahead of(const GemmBlock& g, int64_t j, int64_t panels, int64_t tiles) {
    const bool some = j + panels * kPanel < g.cols && tiles >= panels;
    return {g.b + (j / kPanel + (some ? panels : 0)) * g.panel_bytes, some ? ceil_div(64 * panels, tiles) : 0};
  }
};

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
    for (int64_t v = 0; v * V::width < count; ++v) {
      dequantize[v] = Dequantizer<V>::make(e, g.n0 + j + v * V::width);
      if (g.one_scale) dequantize[v].use(g.row_scale[0], g.row_offset[0]);
    }
  }

  // Sums [rows][P * 16] of rows from r0 on.
  QK_METHOD void store(const int32_t* acc, int64_t r0, int64_t rows) {
    constexpr int64_t together = vectors / 2 * 2;
    int64_t v = 0;
    if (e.out_type == DType::s8 && count == P * kPanel)
      for (; v < together; v += 2) (g.one_scale ? store_s8<true> : store_s8<false>)(*this, acc, r0, rows, v);
    else if (e.out_type == DType::f32 && count == P * kPanel && (!e.residual || e.residual_type == DType::f32))
      for (; v < together; v += 2) (g.one_scale ? store_f32<true> : store_f32<false>)(*this, acc, r0, rows, v);
    for (; v * V::width < count; ++v) store_vector(acc, r0, rows, v);
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
      if (!g.one_scale) d.use(g.row_scale[r0 + r], g.row_offset[r0 + r]);
      f(d(V::load_i32(acc + r * P * kPanel + v * V::width)), residual ? residual + r * residual_step : nullptr, left, c);
    }
    dequantize[v] = d;
  }

  // Two vectors of columns to float32, with a residual of float32 or none.
  template <bool OneScale>
  QK_INLINE void store_f32(Columns& own, const int32_t* acc, int64_t r0, int64_t rows, int64_t v) {
    const GemmBlock& g = own.g;
    const Finisher<V> f = own.finish;
    Dequantizer<V> left = own.dequantize[v], right = own.dequantize[v + 1];
    const int64_t step = g.c_stride, column = own.j + v * V::width, residual_step = f.e.residual_stride;
    const float* scale = g.row_scale + r0;
    const int32_t* offset = g.row_offset + r0;
    float* c = static_cast<float*>(g.c) + r0 * step + column;
    const float* residual = static_cast<const float*>(static_cast<const void*>(f.residual_at(g.m0 + r0, g.n0 + column)));
    for (int64_t r = 0; r < rows; ++r, c += step) {
      if constexpr (!OneScale) {
        left.use(scale[r], offset[r]);
        right.use(scale[r], offset[r]);
      }
      const int32_t* sums = acc + r * P * kPanel + v * V::width;
      auto y0 = left(V::load_i32(sums)), y1 = right(V::load_i32(sums + V::width));
      if (residual) {
        y0 = V::add(y0, V::load_f32(residual + r * residual_step));
        y1 = V::add(y1, V::load_f32(residual + r * residual_step + V::width));
      }
      V::store_f32(c, f.clamp(y0));
      V::store_f32(c + V::width, f.clamp(y1));
    }
    if constexpr (!OneScale) {
      own.dequantize[v] = left;
      own.dequantize[v + 1] = right;
    }
  }

  // Two vectors of columns to int8, two rows at a time, so that four vectors share their packing.
  template <bool OneScale>
  QK_INLINE void store_s8(Columns& own, const int32_t* acc, int64_t r0, int64_t rows, int64_t v) {
    const GemmBlock& g = own.g;
    const Finisher<V> f = own.finish;
    Dequantizer<V> left = own.dequantize[v], right = own.dequantize[v + 1];
    const int64_t step = g.c_stride, item = size_of(f.e.residual_type), column = own.j + v * V::width;
    const int64_t residual_step = f.e.residual_stride * item;
    const int32_t zero = f.e.out_zero;
    const int8_t mask = f.e.out_mask;
    const float* scale = g.row_scale + r0;
    const int32_t* offset = g.row_offset + r0;
    int8_t* c = static_cast<int8_t*>(g.c) + r0 * step + column;
    const char* residual = f.residual_at(g.m0 + r0, g.n0 + column);
    typename V::I q[2][2];
    for (int64_t r = 0; r < rows; r += 2) {
      const int64_t row[2] = {r, r + 1 < rows ? r + 1 : r};  // a last odd row is stored twice
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        if constexpr (!OneScale) {
          left.use(scale[row[i]], offset[row[i]]);
          right.use(scale[row[i]], offset[row[i]]);
        }
        const int32_t* sums = acc + row[i] * P * kPanel + v * V::width;
        auto y0 = left(V::load_i32(sums)), y1 = right(V::load_i32(sums + V::width));
        if (residual) {
          const char* at = residual + row[i] * residual_step;
          y0 = f.add_residual(y0, at);
          y1 = f.add_residual(y1, at + V::width * item);
        }
        q[i][0] = f.round(y0);
        q[i][1] = f.round(y1);
      }
      V::store_s8_rows(c + row[0] * step, c + row[1] * step, q[0][0], q[0][1], q[1][0], q[1][1], zero, mask);
    }
    if constexpr (!OneScale) {
      own.dequantize[v] = left;
      own.dequantize[v + 1] = right;
    }
  }
};

template <class V, class Tile, int R, int P>
void tile_at(const int8_t* a, int64_t row, Columns<V, P>& columns, const Ahead& ahead) {
  alignas(64) int32_t acc[R * P * kPanel];
  Tile::template run<R, P>(a, columns.g.b + columns.j / kPanel * columns.g.panel_bytes, columns.g, ahead, acc);
  columns.store(acc, row, R);
}

// Each line in as few tiles of at most Most rows as it takes, and those alike, so that no tile is a thin remainder.
template <class V, class Tile, int Most, int P, int... Less>
QK_INLINE void column_of_tiles(int64_t j, const GemmBlock& g, std::integer_sequence<int, Less...>) {
  using Function = void (*)(const int8_t*, int64_t, Columns<V, P>&, const Ahead&);
  static constexpr Function tiles[] = {tile_at<V, Tile, Less + 1, P>...};
  Columns<V, P> columns(g, j);
  const int64_t count = ceil_div(g.rows, Most);
  Ahead ahead = Ahead::of(g, j, P, g.lines * count);
  for (int64_t line = 0; line < g.lines; ++line)
    for (int64_t t = 0; t < count; ++t, ahead.p += ahead.step * g.panel_bytes / 64) {
      const int64_t first = g.rows * t / count, rows = g.rows * (t + 1) / count - first;
      tiles[rows - 1](g.a + line * g.line_stride + first * g.lda, line * g.rows + first, columns, ahead);
    }
}

template <class V, class Tile, int Most, int P>
QK_INLINE void column_of_tiles(int64_t j, const GemmBlock& g) {
  column_of_tiles<V, Tile, Most, P>(j, g, std::make_integer_sequence<int, Most>());
}

}  // namespace
}  // namespace qk
