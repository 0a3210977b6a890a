// The kernels that only need lanes: one source for every vector type V, instantiated once per instruction set.
// A last part-vector goes through a small zero-padded buffer, so that no width has its own arithmetic.
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

#define QK_LAMBDA __attribute__((always_inline))

namespace qk {
namespace {

// Calls body(in, out, count) for each vector of `count` elements; in and out are whole vectors, copied where partial.
template <class V, class Body>
QK_INLINE void for_vectors(const void* x, int64_t x_item, void* y, int64_t y_item, int64_t count, Body body) {
  const char* in = static_cast<const char*>(x);
  char* out = static_cast<char*>(y);
  int64_t i = 0;
  for (; i + V::width <= count; i += V::width) body(in + i * x_item, out + i * y_item);
  if constexpr (V::width > 1) {
    if (i == count) return;
    alignas(64) char in_tail[V::width * 4] = {};
    alignas(64) char out_tail[V::width * 4];
    __builtin_memcpy(in_tail, in + i * x_item, size_t((count - i) * x_item));
    body(in_tail, out_tail);
    __builtin_memcpy(out + i * y_item, out_tail, size_t((count - i) * y_item));
  }
}

template <class V>
void quantize(const void* x, DType type, int64_t count, float inv_scale, int32_t zero, bool flip, int8_t* q) {
  if (type == DType::s8) {
    const int8_t* in = static_cast<const int8_t*>(x);
    const int8_t mask = flip ? -128 : 0;
    for (int64_t i = 0; i < count; ++i) q[i] = in[i] ^ mask;
    return;
  }
  const auto flip_bits = V::set1i(flip ? -128 : 0);
  const auto quantizer = Quantizer<V>::make(inv_scale, zero);
  const auto run = [&](auto load, int64_t item) QK_LAMBDA {
    for_vectors<V>(x, item, q, 1, count, [&](const void* in, void* out) QK_LAMBDA {
      V::store_s8(static_cast<int8_t*>(out), V::xori(quantizer(load(in)), flip_bits));
    });
  };
  if (type == DType::f32) run([](const void* p) QK_LAMBDA { return V::load_f32(static_cast<const float*>(p)); }, 4);
  else if (type == DType::f16) run([](const void* p) QK_LAMBDA { return V::load_f16(static_cast<const uint16_t*>(p)); }, 2);
  else run([](const void* p) QK_LAMBDA { return V::load_bf16(static_cast<const uint16_t*>(p)); }, 2);
}

template <class V>
Extremes extremes(const void* x, DType type, int64_t count) {
  auto lo = V::set1(0.0f), hi = V::set1(0.0f);
  for_vectors<V>(x, size_of(type), nullptr, 0, count, [&](const void* in, void*) QK_LAMBDA {
    const auto v = load_float<V>(in, 0, type);
    lo = V::min(v, lo);
    hi = V::max(v, hi);
  });
  alignas(64) float los[V::width], his[V::width];
  V::store_f32(los, lo);
  V::store_f32(his, hi);
  Extremes e{0.0f, 0.0f};
  for (int64_t i = 0; i < V::width; ++i) {
    e.lo = los[i] < e.lo ? los[i] : e.lo;
    e.hi = his[i] > e.hi ? his[i] : e.hi;
  }
  return e;
}

template <class V>
void to_f32(const void* x, DType type, int64_t count, float* y) {
  for_vectors<V>(x, size_of(type), y, 4, count, [&](const void* in, void* out) QK_LAMBDA {
    V::store_f32(static_cast<float*>(out), load_float<V>(in, 0, type));
  });
}

// y = float(q - zero) * scale
template <class V>
void dequantize_row(const int8_t* q, int64_t count, float scale, int32_t zero, DType out_type, void* y) {
  Epilogue e;
  e.out_type = out_type;
  for_vectors<V>(q, 1, y, size_of(out_type), count, [&](const void* in, void* out) QK_LAMBDA {
    const auto i = V::subi(V::load_s8(static_cast<const int8_t*>(in)), V::set1i(zero));
    finish<V>(V::mul(V::to_float(i), V::set1(scale)), nullptr, out, e);
  });
}

// R rows by V::width channels of x * w^T: four partial sums by k mod 4, each in increasing k, then
// (s0 + s1) + (s2 + s3). The order is the contract, so lanes are channels and R only saves loads of w.
template <class V, int R>
QK_INLINE void weight_only_tile(int64_t r, int64_t j, const WeightOnlyBlock& g) {
  typename V::F sum[R][4];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = V::set1(0.0f);
  const float* a = g.a + r * g.lda;
  const int8_t* b = g.b + j / kPanel * g.panel_bytes + j % kPanel * 4;
  for (int64_t k = 0; k < g.k4; ++k) {
    int32_t bytes[V::width];
    __builtin_memcpy(bytes, b + k * 64, sizeof bytes);
    const auto w = V::load_i32(bytes);
    const auto w0 = V::to_float(V::template byte<0>(w)), w1 = V::to_float(V::template byte<1>(w));
    const auto w2 = V::to_float(V::template byte<2>(w)), w3 = V::to_float(V::template byte<3>(w));
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      const float* x = a + i * g.lda + k * 4;
      sum[i][0] = V::fma(V::set1(x[0]), w0, sum[i][0]);
      sum[i][1] = V::fma(V::set1(x[1]), w1, sum[i][1]);
      sum[i][2] = V::fma(V::set1(x[2]), w2, sum[i][2]);
      sum[i][3] = V::fma(V::set1(x[3]), w3, sum[i][3]);
    }
  }
  const Epilogue& e = *g.epilogue;
  const int64_t n = g.n0 + j;
  for (int i = 0; i < R; ++i) {
    const auto total = V::add(V::add(sum[i][0], sum[i][1]), V::add(sum[i][2], sum[i][3]));
    const auto bias = e.bias ? V::load_f32(e.bias + n) : V::set1(0.0f);
    char* c = static_cast<char*>(g.c) + ((r + i) * g.c_stride + j) * size_of(e.out_type);
    finish_at<V>(V::fma(total, V::load_f32(e.w_scale + n), bias), g.m0 + r + i, n, g.cols - j, c, e);
  }
}

template <class V>
void weight_only(const WeightOnlyBlock& g) {
  for (int64_t j = 0; j < g.cols; j += V::width) {
    int64_t r = 0;
    for (; r + 4 <= g.rows; r += 4) weight_only_tile<V, 4>(r, j, g);
    for (; r < g.rows; ++r) weight_only_tile<V, 1>(r, j, g);
  }
}

constexpr int64_t kMaxHeldTaps = 64;  // taps whose weights are unpacked once for a whole row

template <class V>
QK_INLINE void unpack_taps(const int8_t* panel, int64_t c, int64_t first, int64_t taps, int32_t* out) {
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t i = 0; i < V::width; ++i)
      out[t * V::width + i] = panel[(first + t) / 4 * 64 + (c % kPanel + i) * 4 + (first + t) % 4];
}

// Lanes are channels: acc[c] = sum over taps of x[tap][c] * w[tap][c], taps in groups that fit the buffer.
template <class V>
QK_INLINE void depthwise_channels(const DepthwiseRow& d, int64_t c) {
  const Epilogue& e = *d.epilogue;
  const int64_t taps = d.kh * d.kw, item = size_of(e.out_type), count = d.channels - c;
  alignas(64) int32_t weights[kMaxHeldTaps * V::width];
  int64_t offsets[kMaxHeldTaps];
  const int8_t* panel = d.weight + c / kPanel * d.panel_bytes;
  for (int64_t p = 0; p < d.pixels; ++p) {
    auto acc = V::set1i(0);
    for (int64_t first = 0; first < taps; first += kMaxHeldTaps) {
      const int64_t held = taps - first < kMaxHeldTaps ? taps - first : kMaxHeldTaps;
      if (p == 0 || taps > kMaxHeldTaps) {
        unpack_taps<V>(panel, c, first, held, weights);
        for (int64_t t = 0; t < held; ++t)
          offsets[t] = (first + t) / d.kw * d.tap_stride_h + (first + t) % d.kw * d.tap_stride_w + c;
      }
      const int8_t* x = d.x + p * d.pixel_stride;
      for (int64_t t = 0; t < held; ++t)
        acc = V::addi(acc, V::muli(V::load_s8(x + offsets[t]), V::load_i32(weights + t * V::width)));
    }
    const auto y = dequantize<V>(acc, c, d.x_zero, d.x_scale, e);
    finish_at<V>(y, d.m0 + p, c, count, static_cast<char*>(d.y) + (p * d.channels + c) * item, e);
  }
}

template <class V>
void depthwise(const DepthwiseRow& d) {
  for (int64_t c = 0; c < d.channels; c += V::width) depthwise_channels<V>(d, c);
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

// One output row; lanes are channels.
template <class V>
void pool(const Pool2dProblem& p, int64_t image, int64_t row) {
  const int8_t* x = p.x + image * p.h * p.w * p.c;
  int8_t* y = p.y + (image * p.oh + row) * p.ow * p.c;
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

// The kernels of one instruction set, under the names that dispatch.cpp declares.
#define QK_INSTANTIATE_VECTOR_KERNELS(suffix, V)                                                                    \
  namespace qk {                                                                                                    \
  void weight_only_##suffix(const WeightOnlyBlock& g) { weight_only<V>(g); }                                        \
  void depthwise_##suffix(const DepthwiseRow& d) { depthwise<V>(d); }                                               \
  void quantize_##suffix(const void* x, DType t, int64_t n, float inv_scale, int32_t zero, bool flip, int8_t* q) {  \
    quantize<V>(x, t, n, inv_scale, zero, flip, q);                                                                 \
  }                                                                                                                 \
  Extremes extremes_##suffix(const void* x, DType t, int64_t n) { return extremes<V>(x, t, n); }                    \
  void to_f32_##suffix(const void* x, DType t, int64_t n, float* y) { to_f32<V>(x, t, n, y); }                      \
  void dequantize_##suffix(const int8_t* q, int64_t n, float scale, int32_t zero, DType t, void* y) {               \
    dequantize_row<V>(q, n, scale, zero, t, y);                                                                     \
  }                                                                                                                 \
  void pool_##suffix(const Pool2dProblem& p, int64_t image, int64_t row) { pool<V>(p, image, row); }                \
  }
