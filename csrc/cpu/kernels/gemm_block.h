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

// body<OneScale, Out, R, F>() where output, residual and activation are such that loops are compiled for; whether they are.
template <class Body>
QK_INLINE bool with_known_types(const Epilogue& e, bool one_scale, Body body) {
  constexpr auto none = Function::identity;
  const auto with_activation = [&]<Function... F>() {  // what widens a network goes on as int8
    const bool usual = one_scale && e.out_type == DType::s8 && !e.residual;
    return usual && ((e.activation == F && (body.template operator()<true, DType::s8, Residual::none, F>(), true)) || ...);
  };
  const auto with_residual = [&]<bool OneScale, DType Out>() {
    if (!e.residual) body.template operator()<OneScale, Out, Residual::none, none>();
    else if (e.residual_type == DType::f32) body.template operator()<OneScale, Out, Residual::f32, none>();
    else if (e.residual_type == DType::s8) body.template operator()<OneScale, Out, Residual::s8, none>();
    else return false;
    return true;
  };
  const auto with_output = [&]<bool OneScale>() {
    if (e.out_type == DType::f32) return with_residual.template operator()<OneScale, DType::f32>();
    return e.out_type == DType::s8 && with_residual.template operator()<OneScale, DType::s8>();
  };
  if (e.activation != none) return with_activation.template operator()<Function::gelu, Function::silu, Function::hardswish>();
  return one_scale ? with_output.template operator()<true>() : with_output.template operator()<false>();
}

// Rows of N neighbouring vectors of columns, whole, one line and of known types: their sums to C, a few rows at a time.
template <class V, int N, bool OneScale, DType Out, Residual R, Function F>
class KnownRows {
 public:
  static constexpr int64_t at_once = Out == DType::s8 ? 4 / N : 1;  // int8 vectors, of two rows or four, share their packing

  QK_METHOD KnownRows(const GemmBlock& g, const Finisher<V>& finish, const Dequantizer<V>* columns)
      : e_(*g.epilogue), lo_(finish.lo), hi_(finish.hi), inv_scale_(finish.inv_scale), zero_(finish.zero), step_(g.c_stride * size_of(Out)),
        residual_step_(e_.residual_stride * size_of(e_.residual_type)) {
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) dequantize[i] = columns[i];
  }

  // To rows from r0 on of columns from `column` on; `gap`: of C, elements before them besides rows.
  QK_METHOD void go_to(const GemmBlock& g, int64_t column, int64_t r0, int64_t gap) {
    const Finisher<V> finish{e_, lo_, hi_, inv_scale_, zero_};
    c_ = static_cast<char*>(g.c) + (r0 * g.c_stride + gap + column) * size_of(Out);
    residual_ = finish.residual_at(g.m0 + r0, g.n0 + column);
    scale_ = g.row_scale + r0, offset_ = g.row_offset + r0;
  }

  // The next at_once rows, whose sums lie `pitch` apart; of the `left` that there are, the last one may be stored again.
  QK_METHOD void store(const int32_t* acc, int64_t pitch, int64_t left) {
    const Finisher<V> finish{e_, lo_, hi_, inv_scale_, zero_};
    const auto value = [&](int64_t r, int i) QK_LAMBDA {
      if constexpr (!OneScale) dequantize[i].use(scale_[r], offset_[r]);
      const auto x = dequantize[i](V::load_i32(acc + r * pitch + i * V::width));
      const auto y = finish.template add<R>(x, residual_ + r * residual_step_ + i * V::width * size_of(R == Residual::s8 ? DType::s8 : DType::f32));
      return value_of<V, F>(y, V::set1(e_.parameter));
    };
    if constexpr (Out == DType::f32) {
#pragma GCC unroll 2
      for (int i = 0; i < N; ++i) V::store_f32(reinterpret_cast<float*>(c_) + i * V::width, finish.clamp(value(0, i)));
    } else {
      typename V::I q[4];
      int8_t* to[at_once];
#pragma GCC unroll 4
      for (int k = 0; k < at_once; ++k) {
        const int64_t row = k < left ? k : left - 1;
        to[k] = reinterpret_cast<int8_t*>(c_) + row * step_;
#pragma GCC unroll 2
        for (int i = 0; i < N; ++i) q[k * N + i] = finish.round(value(row, i));
      }
      V::store_s8_rows(to, q, e_.out_zero, e_.out_mask);
    }
    c_ += at_once * step_;
    if constexpr (R != Residual::none) residual_ += at_once * residual_step_;
    if constexpr (!OneScale) scale_ += at_once, offset_ += at_once;
  }

  Dequantizer<V> dequantize[N];

 private:
  Epilogue e_;                   // copies that no store can alias
  typename V::F lo_, hi_, inv_scale_;
  typename V::I zero_;
  int64_t step_, residual_step_;
  char* c_;
  const char* residual_;
  const float* scale_;
  const int32_t* offset_;
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
        finish(Finisher<V>::make(e)), together_(count == P * kPanel ? most : 1),
        store_(count == P * kPanel ? store_of<most>() : count >= V::width ? store_of<1>() : nullptr) {
    for (int64_t v = 0; v * V::width < count; ++v) {
      dequantize[v] = Dequantizer<V>::make(e, g.n0 + j + place(v));
      if (g.one_scale) dequantize[v].use(g.row_scale[0], g.row_offset[0]);
    }
  }

  // Asks for the residual of rows from r0 on, which lie far apart, before their products hide the wait.
  QK_METHOD void prefetch(int64_t r0, int64_t rows) const {
    const char* residual = finish.residual_at(g.m0 + r0, g.n0 + j);
    if (!residual || e.residual_type != DType::f32) return;
    for (int64_t r = 0; r < rows; ++r, residual += e.residual_stride * 4)
      for (int64_t line = 0; line < P * kPanel * 4; line += 64) __builtin_prefetch(residual + line);
  }

  // Sums [rows][P * 16] of rows from r0 on.
  QK_METHOD void store(const int32_t* acc, int64_t r0, int64_t rows) {
    if (!g.c_gap) return store_rows(acc, r0, rows, 0);
    const int64_t at = g.c_column + r0, line = at / g.c_line;
    if (at + rows <= (line + 1) * g.c_line) store_rows(acc, r0, rows, line * g.c_gap);
    else store_lines(acc, r0, rows);
  }

 private:
  using Store = void (*)(Columns& own, const int32_t* acc, int64_t r0, int64_t rows, int64_t v, int64_t gap);
  static constexpr int most = vectors < 2 ? 1 : 2;  // vectors that are stored together
  int64_t together_;
  Store store_;                  // of `together_` vectors; null: each by store_any

  // Of a vector, its first column: the last one, where columns are missing, overlaps the one before.
  QK_METHOD int64_t place(int64_t v) const {
    const int64_t last = count - V::width;
    return v * V::width <= last || last < 0 ? v * V::width : last;
  }

  // Where a line ends between them.
  __attribute__((noinline)) void store_lines(const int32_t* acc, int64_t r0, int64_t rows) {
    for (int64_t r = r0, next; r < r0 + rows; r = next) {
      const int64_t line = (g.c_column + r) / g.c_line, end = (line + 1) * g.c_line - g.c_column;
      next = end < r0 + rows ? end : r0 + rows;
      store_rows(acc + (r - r0) * P * kPanel, r, next - r, line * g.c_gap);
    }
  }

  // `gap`: of C, elements before them besides rows.
  QK_METHOD void store_rows(const int32_t* acc, int64_t r0, int64_t rows, int64_t gap) {
    if (store_)
      for (int64_t v = 0; v * V::width < count; v += together_) store_(*this, acc, r0, rows, v, gap);
    else if (e.activation != Function::identity)
      store_activated(*this, acc, r0, rows, gap);
    else
      for (int64_t v = 0; v * V::width < count; ++v) store_any(*this, acc, r0, rows, v, gap);
  }

  // A vector of columns, some of which may not exist, of any types.
  __attribute__((noinline)) static void store_any(Columns& own, const int32_t* acc, int64_t r0, int64_t rows, int64_t v, int64_t gap) {
    const GemmBlock& g = own.g;
    const Epilogue& e = own.e;
    const int64_t place = own.place(v), column = own.j + place, item = size_of(e.out_type), left = own.count - place;
    const Finisher<V> f = own.finish;  // copies that no store can alias
    Dequantizer<V> d = own.dequantize[v];
    const char* residual = f.residual_at(g.m0 + r0, g.n0 + column);
    const int64_t residual_step = e.residual_stride * size_of(e.residual_type);
    char* c = static_cast<char*>(g.c) + (r0 * g.c_stride + gap + column) * item;
    for (int64_t r = 0; r < rows; ++r, c += g.c_stride * item) {
      if (!g.one_scale) d.use(g.row_scale[r0 + r], g.row_offset[r0 + r]);
      f(d(V::load_i32(acc + r * P * kPanel + place)), residual ? residual + r * residual_step : nullptr, left, c);
    }
    own.dequantize[v] = d;
  }

  // Residuals are added in a buffer, the activation is computed there all at once, then rows are stored.
  __attribute__((noinline)) static void store_activated(Columns& own, const int32_t* acc, int64_t r0, int64_t rows, int64_t gap) {
    constexpr int64_t at_once = 32;
    alignas(64) float y[at_once * P * kPanel + 4 * V::width];
    for (int64_t first = 0; first < rows; first += at_once) {
      const int64_t count = rows - first < at_once ? rows - first : at_once;
      for (int64_t v = 0; v * V::width < own.count; ++v) own.add_up(acc + first * P * kPanel, r0 + first, count, v, y);
      activate<V>(own.e.activation, own.e.parameter, y, count * P * kPanel);
      own.store_floats(y, r0 + first, count, gap);
    }
  }

  // Sums of a vector of columns, dequantized, and residuals, to y [rows][P * 16].
  QK_METHOD void add_up(const int32_t* acc, int64_t r0, int64_t rows, int64_t v, float* y) {
    const Epilogue copy = e;  // copies that no store can alias
    const Finisher<V> f{copy, finish.lo, finish.hi, finish.inv_scale, finish.zero};
    Dequantizer<V> d = dequantize[v];
    const bool one_scale = g.one_scale;
    const int64_t at = place(v), left = count - at, item = size_of(copy.residual_type), step = copy.residual_stride * item;
    const char* residual = f.residual_at(g.m0 + r0, g.n0 + j + at);
    alignas(64) char some[V::width * 4] = {};
    for (int64_t r = 0; r < rows; ++r, residual += step) {
      if (!one_scale) d.use(g.row_scale[r0 + r], g.row_offset[r0 + r]);
      auto value = d(V::load_i32(acc + r * P * kPanel + at));
      if (copy.residual) {
        if (left < V::width) __builtin_memcpy(some, residual, size_t(left * item));
        value = f.add_residual(value, left < V::width ? some : residual);
      }
      V::store_f32(y + r * P * kPanel + at, value);
    }
    dequantize[v] = d;
  }

  // Rows of y, clamped, to C; whole rows of int8 by two, which share their packing.
  QK_METHOD void store_floats(const float* y, int64_t r0, int64_t rows, int64_t gap) const {
    Epilogue copy = e;
    copy.activation = Function::identity;
    const Finisher<V> f{copy, finish.lo, finish.hi, finish.inv_scale, finish.zero};
    const int64_t item = size_of(copy.out_type), step = g.c_stride * item;
    char* const c = static_cast<char*>(g.c) + (r0 * g.c_stride + gap + j) * item;
    if (copy.out_type == DType::s8 && count == P * kPanel && vectors % 2 == 0) {
      for (int64_t r = 0; r < rows; r += 2)
        for (int64_t v = 0; v < vectors; v += 2) {
          const int64_t rest = r + 1 < rows ? r + 1 : r;  // the last row may be stored again
          const float *p = y + r * P * kPanel + v * V::width, *q = y + rest * P * kPanel + v * V::width;
          const typename V::I bytes[4] = {f.round(V::load_f32(p)), f.round(V::load_f32(p + V::width)), f.round(V::load_f32(q)),
                                          f.round(V::load_f32(q + V::width))};
          int8_t* const to[2] = {reinterpret_cast<int8_t*>(c + r * step + v * V::width), reinterpret_cast<int8_t*>(c + rest * step + v * V::width)};
          V::store_s8_rows(to, bytes, copy.out_zero, copy.out_mask);
        }
      return;
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t v = 0; v * V::width < count; ++v)
        f(V::load_f32(y + r * P * kPanel + place(v)), nullptr, count - place(v), c + r * step + place(v) * item);
  }

  template <int N>
  Store store_of() const {
    Store store = nullptr;
    with_known_types(e, g.one_scale, [&]<bool OneScale, DType Out, Residual R, Function F>() { store = store_whole<N, OneScale, Out, R, F>; });
    return store;
  }

  // N vectors of columns, v the first.
  template <int N, bool OneScale, DType Out, Residual R, Function F>
  static void store_whole(Columns& own, const int32_t* acc, int64_t r0, int64_t rows, int64_t v, int64_t gap) {
    using Known = KnownRows<V, N, OneScale, Out, R, F>;
    const int64_t place = own.place(v);
    Known known(own.g, own.finish, own.dequantize + v);
    known.go_to(own.g, own.j + place, r0, gap);
    for (int64_t r = 0; r < rows; r += Known::at_once) known.store(acc + r * P * kPanel + place, P * kPanel, rows - r);
    if constexpr (!OneScale)
#pragma GCC unroll 2
      for (int i = 0; i < N; ++i) own.dequantize[v + i] = known.dequantize[i];
  }
};

template <class V, class Tile, int R, int P>
void tile_at(const int8_t* a, int64_t row, Columns<V, P>& columns, const Ahead& ahead) {
  alignas(64) int32_t acc[R * P * kPanel];
  columns.prefetch(row, R);
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

// The whole block: P panels at a time, and one where one is left.
template <class V, class Tile, int Most, int P>
QK_INLINE void gemm_columns(const GemmBlock& g) {
  static_assert(P <= 2);
  int64_t j = 0;
  for (; j + (P - 1) * kPanel < g.cols; j += P * kPanel) column_of_tiles<V, Tile, Most, P>(j, g);
  if constexpr (P > 1)
    if (j < g.cols) column_of_tiles<V, Tile, Most, 1>(j, g);
}

}  // namespace
}  // namespace qk
