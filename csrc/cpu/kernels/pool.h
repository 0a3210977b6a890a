// int8 maximum and average pooling, lanes are channels.
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

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

// One output row; lanes are channels.
template <class V>
void pool(const Pool2dProblem& p, int64_t image, int64_t row) {
  const int8_t* x = static_cast<const int8_t*>(p.x) + image * p.h * p.w * p.c;
  int8_t* y = static_cast<int8_t*>(p.y) + (image * p.oh + row) * p.ow * p.c;
  const int64_t h0 = row * p.stride_h - p.pad_h;
  for (int64_t ow = 0; ow < p.ow; ++ow) {
    const int64_t w0 = ow * p.stride_w - p.pad_w;
    const int64_t h_end = h0 + p.kh < p.h + p.pad_h ? h0 + p.kh : p.h + p.pad_h;  // of the padded window
    const int64_t w_end = w0 + p.kw < p.w + p.pad_w ? w0 + p.kw : p.w + p.pad_w;
    for (int64_t c = 0; c < p.c; c += V::width) {
      const int64_t count = p.c - c;
      auto total = V::set1i(p.average ? 0 : -128);
      int64_t inside = 0;
      for (int64_t i = 0; i < p.kh; ++i) {
        const int64_t h = h0 + i * p.dilation_h;
        if (h < 0 || h >= p.h) continue;
        for (int64_t j = 0; j < p.kw; ++j) {
          const int64_t w = w0 + j * p.dilation_w;
          if (w < 0 || w >= p.w) continue;
          const auto v = load_some<V>(x + (h * p.w + w) * p.c + c, count);
          total = p.average ? V::addi(total, v) : V::maxi(total, v);
          ++inside;
        }
      }
      if (p.average) {  // round_half_even(sum * (1 / count)); padding counts as real 0
        const int64_t window = p.count_include_pad ? (h_end - h0) * (w_end - w0) : inside;
        total = V::addi(total, V::set1i(int32_t((window - inside) * p.x_zero)));
        total = V::round(V::mul(V::to_float(total), V::set1(1.0f / float(window))));
      }
      store_some<V>(y + ow * p.c + c, total, count);
    }
  }
}

}  // namespace
}  // namespace qk
