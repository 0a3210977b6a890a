// C[M,N] for up to 16 rows of x, bound by reading the weight once: no shared memory on the way, 32 channels a block, whose
// warps share K. Weights are the 16-row operand of the products, rows of x the 8-column one; since the order of K does
// not matter to a sum of integers, a lane takes 16 neighbouring bytes of x, and of the weight the same K:
//
//   lane (g, t)   x: row g, bytes 16t to 16t + 15 of 64     w: channels 4g to 4g + 3, K quads 4t to 4t + 3
//   product j     rows g and g + 8 are channels 4g + 2j and 4g + 2j + 1, columns are rows of x
#pragma once
#include "output.cuh"
#include "sources.cuh"

namespace qk::cuda {

constexpr int kSkinnyWarps = 8;
constexpr int kSkinnyThreads = kSkinnyWarps * 32;
constexpr int kSkinnyChannels = 32;
constexpr int kSkinnyStep = 64;            // of K, that a warp takes at a time

template <int Columns>                     // 8 rows of x each
constexpr int skinny_bytes() { return kSkinnyWarps * Columns * 8 * kSkinnyChannels * 4; }

namespace {

// 16 bytes of a sum row of 32 channels, moved so that rows written together do not meet.
QK_DEVICE int skinny_at(int row, int channel) { return (row * kSkinnyChannels + (channel ^ (row & 6) * 4)) * 4; }

template <class V, int Columns>
QK_DEVICE void store_skinny(const GemmArgs& g, int64_t n0, const char* sums) {
  constexpr int vectors = kSkinnyChannels / V::width;
  const int column = int(thread_index() % vectors * V::width);
  const int64_t n = n0 + column;
  if (n >= g.layout.n) return;
  const auto finish = Finisher<V>::make(g.epilogue);
  auto dequantize = Dequantizer<V>::make(g.epilogue, n);
  for (int m = thread_index() / vectors; m < g.m; m += kSkinnyThreads / vectors) {
    auto acc = V::set1i(0);
    for (int w = 0; w < kSkinnyWarps; ++w)
      acc = V::addi(acc, shared_load<typename V::I>(sums + w * Columns * 8 * kSkinnyChannels * 4 + skinny_at(m, column)));
    use_row(dequantize, g, m);
    finish.whole(dequantize(acc), finish.residual_at(m, n), output_at(g, m, n));
  }
}

template <int Columns>
QK_KERNEL(kSkinnyThreads) skinny_kernel(QK_PARAMETER GemmArgs g, QK_PARAMETER Rows x) {
  const int lane = lane_index(), warp = warp_index(), group = lane / 4, quad = lane % 4;
  const int64_t n0 = block_x() * kSkinnyChannels, channel = n0 + group * 4;
  const bool exists = channel < g.layout.n_padded();
  const int8_t* const weight = g.weight + (exists ? channel : 0) / kPanel * g.layout.panel_bytes() + channel % kPanel * 4;
  const int8_t* rows[Columns];
  bool row_exists[Columns];
  QK_UNROLL for (int c = 0; c < Columns; ++c) {
    row_exists[c] = c * 8 + group < x.m;
    rows[c] = x.x + (row_exists[c] ? c * 8 + group : 0) * x.stride;
  }
  int32_t acc[2][Columns][4] = {};
  for (int k0 = warp * kSkinnyStep; k0 < g.layout.k_padded(); k0 += kSkinnyWarps * kSkinnyStep) {
    const int k = k0 + quad * 16;
    Words w[4], b[Columns];
    QK_UNROLL for (int i = 0; i < 4; ++i) w[i] = exists ? global_load_once<Words>(weight + (k + i * 4) * 16) : Words{};
    QK_UNROLL for (int c = 0; c < Columns; ++c) b[c] = row_exists[c] && k < x.k ? global_load<Words>(rows[c] + k) : Words{};
    QK_UNROLL for (int i = 0; i < 4; i += 2)
      QK_UNROLL for (int j = 0; j < 2; ++j) {
        const uint32_t a[4] = {w[i].v[2 * j], w[i].v[2 * j + 1], w[i + 1].v[2 * j], w[i + 1].v[2 * j + 1]};
        QK_UNROLL for (int c = 0; c < Columns; ++c) multiply(acc[j][c], a, b[c].v[i], b[c].v[i + 1]);
      }
  }
  char* const sums = shared_memory();
  QK_UNROLL for (int c = 0; c < Columns; ++c)
    QK_UNROLL for (int b = 0; b < 2; ++b) {
      const Pack<int32_t, 4> four = {{acc[0][c][b], acc[0][c][2 + b], acc[1][c][b], acc[1][c][2 + b]}};
      shared_store(sums + warp * Columns * 8 * kSkinnyChannels * 4 + skinny_at(c * 8 + quad * 2 + b, group * 4), four);
    }
  block_sync();
  if (g.vectors) store_skinny<Lanes<4>, Columns>(g, n0, sums);
  else store_skinny<Lanes<1>, Columns>(g, n0, sums);
}

}  // namespace
}  // namespace qk::cuda
