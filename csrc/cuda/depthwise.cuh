// Depthwise convolution: a thread computes V::width neighbouring channels of a pixel. Four taps of a channel are
// neighbours in the packed weight (core/layout.h).
#pragma once
#include "output.cuh"
#include "sources.cuh"

namespace qk::cuda {

constexpr int kDepthwiseThreads = 128;

struct DepthwiseArgs {
  GemmArgs out;              // n: output channels, k: taps
  Image image;
  int kw, multiplier;        // output channels of an input channel; 1 where V::width > 1
  Divisor vectors;           // of a pixel
};

namespace {

template <class V>
QK_KERNEL(kDepthwiseThreads) depthwise_kernel(QK_PARAMETER DepthwiseArgs d) {
  const GemmArgs& g = d.out;
  const int64_t at = block_x() * kDepthwiseThreads + thread_index(), m = d.vectors.quotient(uint32_t(at));
  if (m >= g.m) return;
  const int64_t n = (at - m * d.vectors.divisor) * V::width;
  const Image::Row row = d.image.row(m);
  const int8_t* const weight = g.weight + n / kPanel * g.layout.panel_bytes() + n % kPanel * 4;
  typename V::I acc = V::set1i(0);
  for (int k = 0; k < g.layout.k; ++k) {
    const int y = k / d.kw;
    const Image::Tap tap{y * d.image.dilation_h, (k - y * d.kw) * d.image.dilation_w, int(n) / d.multiplier, true};
    const int8_t* const from = d.image.at(row, tap);
    const auto x = from ? V::load_s8(from) : V::set1i(int8_t(d.image.zeros(row)));
    QK_UNROLL for (int i = 0; i < V::width; ++i) acc.v[i] += x.v[i] * global_load<int8_t>(weight + k / 4 * 64 + i * 4 + k % 4);
  }
  auto dequantize = Dequantizer<V>::make(g.epilogue, n);
  use_row(dequantize, g, m);
  const auto finish = Finisher<V>::make(g.epilogue);
  finish.whole(dequantize(acc), finish.residual_at(m, n), output_at(g, m, n));
}

}  // namespace
}  // namespace qk::cuda
