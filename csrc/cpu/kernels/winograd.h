// The steps of an exact F(4x4, 3x3) (core/winograd.h), for every vector type:
//
//   weights   packed bytes -> U, when a weight is first used
//   input     tiles of x -> V [36][tiles][channels], words
//   products  M[36][tiles][32] = V * U, a GEMM a point
//   output    M -> 4x4 outputs a tile, as sums of lines of pixels, into the epilogue of every other GEMM
#pragma once
#include "gemm_block.h"

namespace qk {
namespace {

// ---- weights

// G' of three vectors of words, rows (6,0,0) (-4,-4,-4) (-4,4,-4) (1,2,4) (1,-2,4) (0,0,3); the compiler makes vectors of it.
template <int Count>
QK_INLINE void times_g(const uint16_t* a, const uint16_t* b, const uint16_t* c, uint16_t* __restrict out, int64_t step) {
  for (int i = 0; i < Count; ++i) {
    const auto ends = uint16_t((a[i] + c[i]) << 2), middle = uint16_t(b[i] << 2), far = uint16_t(a[i] + (c[i] << 2));
    const auto twice = uint16_t(b[i] << 1);
    out[i] = uint16_t(a[i] * 6);
    out[step + i] = uint16_t(-ends - middle);
    out[2 * step + i] = uint16_t(middle - ends);
    out[3 * step + i] = uint16_t(far + twice);
    out[4 * step + i] = uint16_t(far - twice);
    out[5 * step + i] = uint16_t(c[i] * 3);
  }
}

// Four channels from c0 on of a tap, whose K starts at `k`, as words [2 pairs][16][2]; zeros where there are none.
QK_INLINE void read_tap(const int8_t* panel, int64_t k, int64_t channels, int64_t c0, uint16_t* out) {
  alignas(64) uint32_t four[kPanel], words[2 * kPanel];  // four bytes of an output channel, as they are packed
  if (k % 4 == 0 && c0 + 4 <= channels) {
    __builtin_memcpy(four, panel + (k + c0) * kPanel, sizeof four);
  } else {
    for (int64_t n = 0; n < kPanel; ++n) {
      four[n] = 0;
      for (int64_t j = 0, column = k + c0; j < 4 && c0 + j < channels; ++j, ++column)
        four[n] |= uint32_t(uint8_t(panel[column / 4 * 64 + n * 4 + column % 4])) << 8 * j;
    }
  }
  const auto byte = [](uint32_t v, int i) QK_LAMBDA { return int32_t(v << (24 - 8 * i)) >> 24; };
  for (int64_t n = 0; n < kPanel; ++n) {
    words[n] = (uint32_t(byte(four[n], 0)) & 0xffff) | uint32_t(byte(four[n], 1)) << 16;
    words[kPanel + n] = (uint32_t(byte(four[n], 2)) & 0xffff) | uint32_t(byte(four[n], 3)) << 16;
  }
  __builtin_memcpy(out, words, sizeof words);
}

inline void winograd_weights(const int8_t* panel, int64_t channels, int64_t row, int64_t point, int16_t* u) {
  constexpr int words = 64;
  alignas(64) uint16_t g[9][words], t[18][words];
  for (int64_t c0 = 0; c0 < channels; c0 += 4, u += words) {
    for (int tap = 0; tap < 9; ++tap) read_tap(panel, tap / 3 * row + tap % 3 * channels, channels, c0, g[tap]);
    for (int j = 0; j < 3; ++j) times_g<words>(g[j], g[3 + j], g[6 + j], t[j], 3 * words);
    for (int i = 0; i < 6; ++i) times_g<words>(t[i * 3], t[i * 3 + 1], t[i * 3 + 2], reinterpret_cast<uint16_t*>(u) + i * 6 * point, point);
  }
}

// ---- input

// B^T d: rows (4,0,-5,0,1,0) (0,-4,-4,1,1,0) (0,4,-4,-1,1,0) (0,-2,-1,2,1,0) (0,2,-1,-2,1,0) (0,4,0,-5,0,1).
template <class V>
QK_INLINE void times_b(const typename V::W (&d)[6], typename V::W (&out)[6]) {
  const auto d1 = V::template shlw<2>(d[1]), d2 = V::template shlw<2>(d[2]);
  const auto even = V::subw(d[4], d2), odd = V::subw(d[3], d1), near = V::subw(d[4], d[2]);
  const auto slope = V::template shlw<1>(V::subw(d[3], d[1]));
  out[0] = V::addw(V::template shlw<2>(V::subw(d[0], d[2])), near);
  out[1] = V::addw(even, odd);
  out[2] = V::subw(even, odd);
  out[3] = V::addw(near, slope);
  out[4] = V::subw(near, slope);
  out[5] = V::addw(V::subw(d1, V::template shlw<2>(d[3])), V::subw(d[5], d[3]));
}

template <class V>
void winograd_input(const WinogradInput& in) {
  constexpr int64_t step = 2 * V::width;
  for (int64_t t = 0; t < in.tiles; ++t) {
    const WinogradTile& tile = in.tile[t];
    const int8_t *rows[6];
    int64_t columns[6];
    for (int i = 0; i < 6; ++i) {
      rows[i] = tile.x + (i < tile.rows ? i : tile.rows - 1) * in.row;
      columns[i] = (i < tile.columns ? i : tile.columns - 1) * in.pixel;
    }
    for (int64_t c = 0; c < in.channels; c += step) {
      typename V::W half[6][6];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        typename V::W d[6], out[6];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) d[i] = V::load_words(rows[i] + columns[j] + c, in.mask);
        times_b<V>(d, out);
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) half[i][j] = out[i];
      }
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) {
        typename V::W out[6];
        times_b<V>(half[i], out);
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) V::store_words(in.v + (i * 6 + j) * in.v_point + t * in.v_tile + c, out[j]);
      }
    }
  }
}

// ---- products

// R tiles by P panels of one point. Meanwhile it asks for the weight at `next`, and `other` words behind it, which may lie beyond L2.
template <class V, int R, int P>
void product_tile(const WinogradProducts& g, const int16_t* v, const int16_t* u, int32_t* m, const int16_t* next, int64_t other) {
  constexpr int each = int(kPanel / V::width), count = P * each, thirds = (R + 2) / 3;
  typename V::I sum[R][count];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
    for (int i = 0; i < count; ++i) sum[r][i] = V::set1i(0);
  int64_t step = g.v_tile;
  const int64_t panel = g.u_panel;
  const int16_t* rows[thirds];               // every third row; the others by an index, so that all stay in registers
#pragma GCC unroll 4
  for (int i = 0; i < thirds; ++i) rows[i] = v + i * 3 * step;
  for (const int16_t* const end = u + g.pairs * 2 * kPanel; u < end; u += 2 * kPanel, next += 2 * kPanel) {
    __builtin_prefetch(next, 0, 2);
    if constexpr (P > 1) __builtin_prefetch(next + other, 0, 2);
    typename V::I w[count];
#pragma GCC unroll 32
    for (int i = 0; i < count; ++i)
      w[i] = V::load_i32(reinterpret_cast<const int32_t*>(u + i / each * panel) + i % each * V::width);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      int32_t two;
      __builtin_memcpy(&two, rows[r / 3] + r % 3 * step, 4);
      const typename V::I x = V::set1i(two);
#pragma GCC unroll 32
      for (int i = 0; i < count; ++i) sum[r][i] = V::dot2(sum[r][i], x, w[i]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < thirds; ++i) rows[i] += 2;
    asm("" : "+r"(step));                    // or GCC hoists all R addresses, more than there are registers
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
    for (int i = 0; i < count; ++i) V::store_i32(m + r * WinogradProducts::kColumns + i * V::width, sum[r][i]);
}

// A point's tiles in as few as it takes of at most `Less...` rows, and those alike; each asks for a panel of the next point, or
// one for all of them.
template <class V, int P, int... Less>
void product_rows(const WinogradProducts& g, const int16_t* v, const int16_t* u, int32_t* m, std::integer_sequence<int, Less...>) {
  using Function = void (*)(const WinogradProducts&, const int16_t*, const int16_t*, int32_t*, const int16_t*, int64_t);
  static constexpr Function tiles[] = {product_tile<V, Less + 1, P>...};
  const int64_t count = ceil_div(g.tiles, int64_t(sizeof...(Less))), other = count < P ? g.u_panel : 0;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t first = g.tiles * t / count, rows = g.tiles * (t + 1) / count - first;
    tiles[rows - 1](g, v + first * g.v_tile, u, m + first * WinogradProducts::kColumns,
                    u + g.u_point + (other ? 0 : t % P * g.u_panel), other);
  }
}

// 12 tiles by 2 panels fill the 32 registers of 16 lanes; 6 by 1 the 16 of 8 lanes.
template <class V>
void winograd_products(const WinogradProducts& g) {
  constexpr int most = V::width == 16 ? 12 : V::width == 8 ? 6 : 4, together = V::width == 16 ? 2 : 1;
  for (int64_t q = 0; q < WinogradWeight::kPoints; ++q)
    for (int64_t panel = 0; panel < g.panels; panel += together) {
      const int16_t *v = g.v + q * g.v_point, *u = g.u + panel * g.u_panel + q * g.u_point;
      int32_t* m = g.m + q * g.m_point + panel * kPanel;
      if (g.panels - panel >= together) product_rows<V, together>(g, v, u, m, std::make_integer_sequence<int, most>());
      else product_rows<V, 1>(g, v, u, m, std::make_integer_sequence<int, most>());
    }
}

// ---- output

// A'^T m: rows (1,1,1,1,1,0) (0,1,-1,2,-2,0) (0,1,1,4,4,0) (0,1,-1,8,-8,8).
template <class V>
QK_INLINE void times_a(const typename V::I (&m)[6], typename V::I (&out)[4]) {
  const auto p = V::addi(m[1], m[2]), q = V::subi(m[1], m[2]), r = V::addi(m[3], m[4]), s = V::subi(m[3], m[4]);
  out[0] = V::addi(V::addi(m[0], p), r);
  out[1] = V::addi(q, V::template shli<1>(s));
  out[2] = V::addi(p, V::template shli<2>(r));
  out[3] = V::addi(q, V::template shli<3>(V::addi(s, m[5])));
}

// A vector of channels of a tile: its 16 sums, 4 lines of pixels that are `pixel` sums apart.
template <class V>
QK_INLINE void tile_sums(const int32_t* m, int64_t m_point, int32_t* y, int64_t line, int64_t pixel) {
  typename V::I half[4][6];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    typename V::I column[6], out[4];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) column[i] = V::load_i32(m + (i * 6 + j) * m_point);
    times_a<V>(column, out);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    typename V::I out[4];
    times_a<V>(half[i], out);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) V::store_i32(y + i * line + j * pixel, V::template sari<6>(V::muli(out[j], V::set1i(0x38E38E39))));
  }
}

template <class V, int P>
void output_panels(const WinogradOutput& o) {
  constexpr int64_t columns = P * kPanel, line = 4 * WinogradOutput::kTiles * columns;
  alignas(64) int32_t y[4 * line];
  for (int64_t t = 0; t < o.tiles; ++t)
    for (int64_t i = 0; i < columns; i += V::width)
      tile_sums<V>(o.m + t * WinogradProducts::kColumns + i, o.m_point, y + t * 4 * columns + i, line, columns);
  Columns<V, P> out(o.block, 0);
  for (int64_t i = 0; i < o.lines; ++i) out.store(y + i * line, i * o.line_rows, o.pixels);
}

template <class V>
void winograd_output(const WinogradOutput& o) {
  o.block.cols > kPanel ? output_panels<V, 2>(o) : output_panels<V, 1>(o);
}

}  // namespace
}  // namespace qk
