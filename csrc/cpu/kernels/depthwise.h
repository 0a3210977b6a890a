// Depthwise convolution: one output row, lanes are channels.
//
//   y[p][c] = epilogue(sum over taps of x[p + tap][c] * w[tap][c])
//
// Taps are taken in vertical pairs. First the input columns of the row are widened once to int16 pairs
//   buffer[pair][column][lane] = (x[row 2*pair][column], x[row 2*pair + 1][column])
// then every output pixel multiplies KW columns of each pair (vpmaddwd, or vpdpwssd where there is one):
// a column is widened once and read KW times. An odd last row is paired with zero weights.
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

constexpr int64_t kMaxPairs = 4;        // vertical pairs widened at once
constexpr int64_t kMaxColumns = 256;    // columns of the buffer

// Weights of one tap, a channel in each lane; 0 below the kernel's last row.
template <class V>
QK_INLINE typename V::I tap_weights(const DepthwiseRow& d, int64_t c, int64_t row, int64_t j) {
  if (row >= d.kh) return V::set1i(0);
  const int64_t tap = row * d.kw + j;
  int32_t bytes[V::width];
  __builtin_memcpy(bytes, d.weight + c / kPanel * d.panel_bytes + tap / 4 * 64 + c % kPanel * 4, sizeof bytes);
  const auto four = V::load_i32(bytes);
  switch (tap % 4) {
    case 0: return V::template byte<0>(four);
    case 1: return V::template byte<1>(four);
    case 2: return V::template byte<2>(four);
    default: return V::template byte<3>(four);
  }
}

// Weights of taps (2 * pair, j) and (2 * pair + 1, j) side by side in each lane.
template <class V>
QK_INLINE typename V::I weight_pair(const DepthwiseRow& d, int64_t c, int64_t pair, int64_t j) {
  return V::pair(tap_weights<V>(d, c, 2 * pair, j), tap_weights<V>(d, c, 2 * pair + 1, j));
}

// Columns [0, count) of pairs [first, first + pairs) from `x`, the first tap of the first pixel of this piece.
template <class V>
QK_INLINE void widen(const DepthwiseRow& d, const int8_t* x, int64_t first, int64_t pairs, int64_t count, int32_t* buffer) {
  for (int64_t i = 0; i < pairs; ++i) {
    const int8_t* top = x + 2 * (first + i) * d.tap_stride_h;
    const int8_t* bottom = 2 * (first + i) + 1 < d.kh ? top + d.tap_stride_h : top;
    int32_t* out = buffer + i * kMaxColumns * V::width;
    for (int64_t j = 0; j < count; ++j)
      V::store_i32(out + j * V::width, V::load_s8_pair(top + j * d.column_stride, bottom + j * d.column_stride));
  }
}

// KW known at compile time for the common sizes, so that the weights stay in registers; 0 is any.
template <class V, int KW, int Pairs>
__attribute__((noinline)) void row_of_pixels(const DepthwiseRow& row, int64_t c) {
  const DepthwiseRow d = row;      // copies that no store can alias
  const Epilogue e = *d.epilogue;
  const int64_t kw = KW ? KW : d.kw, pairs = Pairs ? Pairs : ceil_div(d.kh, 2), item = size_of(e.out_type);
  auto dequantize = Dequantizer<V>::make(e, c);
  dequantize.use(d.x_scale, d.x_zero);
  const auto finish = Finisher<V>::make(e);
  alignas(64) int32_t buffer[kMaxPairs * kMaxColumns * V::width];
  const int64_t span = (kw - 1) * d.tap_columns + 1;  // columns of one pixel
  const int64_t most = (kMaxColumns - span) / d.pixel_columns + 1;
  typename V::I held[KW && Pairs ? KW * Pairs : 1];
  if constexpr (KW && Pairs)
#pragma GCC unroll 4
    for (int i = 0; i < Pairs; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < KW; ++j) held[i * KW + j] = weight_pair<V>(d, c, i, j);
  for (int64_t p0 = 0; p0 < d.pixels; p0 += most) {
    const int64_t pixels = d.pixels - p0 < most ? d.pixels - p0 : most;
    const int8_t* x = d.x + p0 * d.pixel_columns * d.column_stride + c;
    if constexpr (KW && Pairs) widen<V>(d, x, 0, Pairs, (pixels - 1) * d.pixel_columns + span, buffer);
    for (int64_t p = 0; p < pixels; ++p) {
      auto acc = V::set1i(0);
      const int32_t* column = buffer + p * d.pixel_columns * V::width;
      if constexpr (KW && Pairs) {
#pragma GCC unroll 4
        for (int i = 0; i < Pairs; ++i)
#pragma GCC unroll 8
          for (int j = 0; j < KW; ++j)
            acc = V::dot_pair(acc, V::load_i32(column + (i * kMaxColumns + j * d.tap_columns) * V::width), held[i * KW + j]);
      } else {
        const int8_t* at = x + p * d.pixel_columns * d.column_stride;
        for (int64_t i = 0; i < pairs; ++i)
          for (int64_t j = 0; j < kw; ++j) {
            const int8_t* top = at + 2 * i * d.tap_stride_h + j * d.tap_columns * d.column_stride;
            const int8_t* bottom = 2 * i + 1 < d.kh ? top + d.tap_stride_h : top;
            acc = V::dot_pair(acc, V::load_s8_pair(top, bottom), weight_pair<V>(d, c, i, j));
          }
      }
      const auto y = dequantize(acc);
      finish(y, finish.residual_at(d.m0 + p0 + p, c), d.channels - c, static_cast<char*>(d.y) + ((p0 + p) * d.channels + c) * item);
    }
  }
}

template <class V>
void depthwise(const DepthwiseRow& d) {
  const bool fits = (d.kw - 1) * d.tap_columns < kMaxColumns / 2 && d.pixel_columns < kMaxColumns / 2;
  for (int64_t c = 0; c < d.channels; c += V::width) {
    if (fits && d.kh == 3 && d.kw == 3) row_of_pixels<V, 3, 2>(d, c);
    else if (fits && d.kh == 5 && d.kw == 5) row_of_pixels<V, 5, 3>(d, c);
    else if (fits && d.kh == 7 && d.kw == 7) row_of_pixels<V, 7, 4>(d, c);
    else row_of_pixels<V, 0, 0>(d, c);
  }
}

}  // namespace
}  // namespace qk
