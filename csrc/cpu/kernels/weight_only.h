// Float rows by int8 weights, summed in f32 in an order that every vector width shares.
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

constexpr int64_t kAhead = 1024;  // bytes of weights asked for before their turn: memory is slower than one row's sums

// R rows by P panels of x * w^T: four partial sums by k mod 4, each in increasing k, then (s0 + s1) + (s2 + s3). The
// order is the contract. 64 packed bytes are 16 channels by 4 k, so widened as they lie, lanes are (channel, k mod 4):
// the partial sums themselves. R saves conversions of w; P gives few rows enough chains of fma to hide its latency.
template <class V, int R, int P>
QK_INLINE void weight_only_tile(int64_t r, int64_t j, const WeightOnlyBlock& block) {
  constexpr int N = 64 / V::width;  // vectors of a panel
  const WeightOnlyBlock g = block;  // copies that no store can alias
  typename V::F sum[R][P][N];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 64
      for (int v = 0; v < N; ++v) sum[i][p][v] = V::set1(0.0f);
  const float* a = g.a + r * g.lda;
  const int8_t* b = g.b + j / kPanel * g.panel_bytes;
  for (int64_t k = 0; k < g.k4; ++k, a += 4, b += 64)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      __builtin_prefetch(b + p * g.panel_bytes + kAhead);
#pragma GCC unroll 64
      for (int v = 0; v < N; ++v) {
        const auto w = V::to_float(V::load_s8(b + p * g.panel_bytes + v * V::width));
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) sum[i][p][v] = V::fma(V::repeat_four(a + i * g.lda, v), w, sum[i][p][v]);
      }
    }
  const Epilogue& e = *g.epilogue;
  const auto finish = Finisher<V>::make(e);
  for (int i = 0; i < R; ++i)
    for (int p = 0; p < P; ++p) {
      alignas(64) float parts[kPanel][4], total[kPanel];
#pragma GCC unroll 64
      for (int v = 0; v < N; ++v) V::store_f32(parts[0] + v * V::width, sum[i][p][v]);
      for (int64_t n = 0; n < kPanel; ++n) total[n] = (parts[n][0] + parts[n][1]) + (parts[n][2] + parts[n][3]);
      for (int64_t at = 0; at < kPanel; at += V::width) {
        const int64_t column = j + p * kPanel + at, n = g.n0 + column;
        if (column >= g.cols) break;
        const auto bias = e.bias ? V::load_f32(e.bias + n) : V::set1(0.0f);
        char* c = static_cast<char*>(g.c) + ((r + i) * g.c_stride + column) * size_of(e.out_type);
        finish(V::fma(V::load_f32(total + at), V::load_f32(e.w_scale + n), bias), finish.residual_at(g.m0 + r + i, n),
               g.cols - column, c);
      }
    }
}

template <class V, int R, int P>
QK_INLINE void weight_only_rows(int64_t r, const WeightOnlyBlock& g) {
  int64_t j = 0;
  for (; j + (P - 1) * kPanel < g.cols; j += P * kPanel) weight_only_tile<V, R, P>(r, j, g);
  if constexpr (P > 1)
    for (; j < g.cols; j += kPanel) weight_only_tile<V, R, 1>(r, j, g);
}

// The sums of a tile fit the registers of 512 bits.
template <class V>
void weight_only(const WeightOnlyBlock& g) {
  constexpr int rows = V::width == 16 ? 6 : 1;
  int64_t r = 0;
  for (; r + rows <= g.rows; r += rows) weight_only_rows<V, rows, 1>(r, g);
  if constexpr (rows > 2)
    for (; r + 2 <= g.rows; r += 2) weight_only_rows<V, 2, 2>(r, g);
  for (; r < g.rows; ++r) weight_only_rows<V, 1, V::width == 16 ? 4 : 1>(r, g);
}

}  // namespace
}  // namespace qk
