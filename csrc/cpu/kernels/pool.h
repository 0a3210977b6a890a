// int8 maximum and average pooling, lanes are channels.
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"
#include "pixels.h"

namespace qk {
namespace {

// The taps of a window that lie in the image.
struct Taps {
  int64_t row0, rows, column0, columns;  // first coordinates, and how many
  int64_t row_step, column_step;

  Taps(const Pool2dProblem& p, int64_t h0, int64_t w0) : row_step(p.dilation_h), column_step(p.dilation_w) {
    const auto clip = [](int64_t from, int64_t count, int64_t step, int64_t size, int64_t& first) QK_LAMBDA {
      const int64_t skip = from < 0 ? (-from + step - 1) / step : 0;
      first = from + skip * step;
      const int64_t fit = first < size ? (size - 1 - first) / step + 1 : 0;
      const int64_t left = count - skip;
      return left < 0 ? 0 : left < fit ? left : fit;
    };
    rows = clip(h0, p.kh, p.dilation_h, p.h, row0);
    columns = clip(w0, p.kw, p.dilation_w, p.w, column0);
  }
};

// The maximum of N channels over the taps.
template <int N>
QK_INLINE void max_bytes(const int8_t* x, const Taps& t, int64_t row_bytes, int64_t pixel_bytes, int8_t mask, int8_t* y) {
  using B = typename Bytes<N>::type;
  typedef int8_t Register __attribute__((vector_size(N)));
  Register best = Register{} ^ int8_t(-128);
  for (int64_t i = 0; i < t.rows; ++i)
    for (int64_t j = 0; j < t.columns; ++j) {
      const Register v = *reinterpret_cast<const B*>(x + i * row_bytes + j * pixel_bytes) ^ mask;
      best = v > best ? v : best;
    }
  *reinterpret_cast<B*>(y) = best ^ mask;
}

QK_INLINE void max_pixel(const Pool2dProblem& p, const int8_t* x, const Taps& t, int8_t* y) {
  const int64_t pixel_bytes = t.column_step * p.c, row_bytes = t.row_step * p.w * p.c;
  int64_t c = 0;
  for (; c + 64 <= p.c; c += 64) max_bytes<64>(x + c, t, row_bytes, pixel_bytes, p.mask, y + c);
  for (; c + 16 <= p.c; c += 16) max_bytes<16>(x + c, t, row_bytes, pixel_bytes, p.mask, y + c);
  for (; c < p.c; ++c) {
    int8_t best = -128;
    for (int64_t i = 0; i < t.rows; ++i)
      for (int64_t j = 0; j < t.columns; ++j) {
        const int8_t v = x[i * row_bytes + j * pixel_bytes + c] ^ p.mask;
        best = v > best ? v : best;
      }
    y[c] = best ^ p.mask;
  }
}

template <class V>
QK_INLINE typename V::I load_some(const int8_t* p, int64_t count) {
  if (count >= V::width) return V::load_s8(p);
  alignas(64) int8_t part[V::width] = {};
  __builtin_memcpy(part, p, size_t(count));
  return V::load_s8(part);
}

template <class V>
QK_INLINE void store_some(int8_t* p, typename V::I v, int64_t count) {
  if (count >= V::width) return V::store_s8(p, v);
  alignas(64) int8_t part[V::width];
  V::store_s8(part, v);
  __builtin_memcpy(p, part, size_t(count));
}

// round_half_even(sum * (1 / count)); `window` counts the padded window, whose padding is real 0.
template <class V>
QK_INLINE void average_pixel(const Pool2dProblem& p, const int8_t* x, const Taps& t, int64_t window, int8_t* y) {
  const int64_t inside = t.rows * t.columns, count = p.count_include_pad ? window : inside;
  const auto mask = V::set1i(p.mask);
  for (int64_t c = 0; c < p.c; c += V::width) {
    auto total = V::set1i(int32_t((count - inside) * p.x_zero));
    for (int64_t i = 0; i < t.rows; ++i)
      for (int64_t j = 0; j < t.columns; ++j)
        total = V::addi(total, V::xori(load_some<V>(x + (i * t.row_step * p.w + j * t.column_step) * p.c + c, p.c - c), mask));
    total = V::round(V::mul(V::to_float(total), V::set1(1.0f / float(count))));
    store_some<V>(y + c, V::xori(total, mask), p.c - c);
  }
}

// One output row.
template <class V>
void pool(const Pool2dProblem& p, int64_t image, int64_t row) {
  const int8_t* x = static_cast<const int8_t*>(p.x) + image * p.h * p.w * p.c;
  int8_t* y = static_cast<int8_t*>(p.y) + (image * p.oh + row) * p.ow * p.c;
  const int64_t h0 = row * p.stride_h - p.pad_h;
  const int64_t h_end = h0 + p.kh < p.h + p.pad_h ? h0 + p.kh : p.h + p.pad_h;  // of the padded window
  for (int64_t ow = 0; ow < p.ow; ++ow, y += p.c) {
    const int64_t w0 = ow * p.stride_w - p.pad_w;
    const int64_t w_end = w0 + p.kw < p.w + p.pad_w ? w0 + p.kw : p.w + p.pad_w;
    const Taps taps(p, h0, w0);
    const int8_t* first = x + (taps.row0 * p.w + taps.column0) * p.c;
    if (p.average) average_pixel<V>(p, first, taps, (h_end - h0) * (w_end - w0), y);
    else max_pixel(p, first, taps, y);
  }
}

}  // namespace
}  // namespace qk
