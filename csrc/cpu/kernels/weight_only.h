// Float rows by int8 weights, summed in f32 in an order that every vector width shares.
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

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
  const auto finish = Finisher<V>::make(e);
  const int64_t n = g.n0 + j;
  for (int i = 0; i < R; ++i) {
    const auto total = V::add(V::add(sum[i][0], sum[i][1]), V::add(sum[i][2], sum[i][3]));
    const auto bias = e.bias ? V::load_f32(e.bias + n) : V::set1(0.0f);
    char* c = static_cast<char*>(g.c) + ((r + i) * g.c_stride + j) * size_of(e.out_type);
    finish(V::fma(total, V::load_f32(e.w_scale + n), bias), finish.residual_at(g.m0 + r + i, n), g.cols - j, c);
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

}  // namespace
}  // namespace qk
