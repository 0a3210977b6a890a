// Float rows by int8 weights, summed in float32 in the contract's order: four partial sums by k mod 4, each in increasing
// k, then (s0 + s1) + (s2 + s3). A thread computes one channel of R rows; its four chains of fma hide their latency
// behind each other, and neighbours read neighbouring words of the packed weight.
#pragma once
#include "output.cuh"

namespace qk::cuda {

constexpr int kWeightOnlyThreads = 64;
constexpr int kWeightOnlyRows = 4;

struct WeightOnlyArgs {
  GemmArgs out;
  const void* x;
  DType x_type;
  int64_t x_stride;
};

namespace {

template <int R>
QK_KERNEL(kWeightOnlyThreads) weight_only_kernel(QK_PARAMETER WeightOnlyArgs a) {
  using V = Lanes<1>;
  const GemmArgs& g = a.out;
  const int64_t n = block_y() * kWeightOnlyThreads + thread_index(), m0 = block_x() * R, k = g.layout.k;
  if (n >= g.layout.n) return;
  const int8_t* const weight = g.weight + n / kPanel * g.layout.panel_bytes() + n % kPanel * 4;
  float sum[R][4] = {};
  for (int64_t k0 = 0; k0 < k; k0 += 4) {
    const auto w = global_load<Pack<int8_t, 4>>(weight + k0 * 16);
    QK_UNROLL for (int r = 0; r < R; ++r) {
      const int64_t row = (m0 + r < g.m ? m0 + r : m0) * a.x_stride;
      QK_UNROLL for (int i = 0; i < 4; ++i) {
        const float x = k0 + i < k ? load_float<V>(a.x, row + k0 + i, a.x_type).v[0] : 0.0f;
        sum[r][i] = fma_rn(x, float(w.v[i]), sum[r][i]);
      }
    }
  }
  const auto finish = Finisher<V>::make(g.epilogue);
  const auto w_scale = V::load_f32(g.epilogue.w_scale + n);
  const auto bias = g.epilogue.bias ? V::load_f32(g.epilogue.bias + n) : V::set1(0.0f);
  QK_UNROLL for (int r = 0; r < R; ++r) {
    const int64_t m = m0 + r;
    if (m >= g.m) break;
    const auto total = V::set1((sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]));
    finish.whole(V::fma(total, w_scale, bias), finish.residual_at(m, n), output_at(g, m, n));
  }
}

}  // namespace
}  // namespace qk::cuda
