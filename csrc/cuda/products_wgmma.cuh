// Products of one of Hopper's warpgroups, turned around: channels are the 64 rows of a product, rows of x its columns.
//
//   x      128 rows, in the 128-byte swizzle that a descriptor names: the tensor cores read a tile as it was copied
//   w      through registers: a lane's 16 bytes are one K quad of four neighbouring channels, rows g and g + 8 of two
//          products; so a lane's sums are four neighbouring channels too, and eight lanes store 32 of a row
#pragma once
#include "hopper.cuh"
#include "rows_end.cuh"

namespace qk::cuda {
namespace {

struct HopperProducts {
  using T = Hopper;
  static constexpr int kRows = 32;                     // of the tile, in a lane
  static constexpr int kSlab = T::slab_bytes / (32 * 16);  // of them, that pass through shared memory together
  int32_t acc[2][64] = {};
  int lane = lane_index(), group = lane / 4, quad = lane % 4, warp = warp_index() % 4;
  int first = warp_index() / 4 * 128;                  // row of the warpgroup
  int panel = warp * 2 + group / 4, piece = w_piece_of_group(group);

  QK_METHOD void add(const char* x, const char* w) {
    const char* const from = w + panel * (16 * T::BK);
    uint32_t a[T::BK / 32][2][4];
    QK_UNROLL for (int k = 0; k < T::BK / 32; ++k) {
      const Words b0 = shared_load<Words>(from + w_swizzled(k * 8 + quad, piece));
      const Words b1 = shared_load<Words>(from + w_swizzled(k * 8 + 4 + quad, piece));
      QK_UNROLL for (int j = 0; j < 2; ++j) {
        a[k][j][0] = b0.v[j * 2], a[k][j][1] = b0.v[j * 2 + 1];
        a[k][j][2] = b1.v[j * 2], a[k][j][3] = b1.v[j * 2 + 1];
      }
    }
    const uint64_t rows = matrix_descriptor(x + first * T::BK);
    wgmma_fence();
    QK_UNROLL for (int k = 0; k < T::BK / 32; ++k)
      QK_UNROLL for (int j = 0; j < 2; ++j) wgmma_m64n128k32(acc[j], a[k][j], rows + k * 2);
    wgmma_commit();
    wgmma_wait<0>(acc);
  }

  // Sums to bytes. They pass through the warp's slab, a few rows at a time and every lane's own, so that one loop, not 32
  // copies of it, finishes them.
  QK_METHOD void finish(const GemmArgs& g, int64_t m0, int64_t n0) const {
    const int64_t m = m0 + first + quad * 2, n = n0 + panel * kPanel + piece * 4;
    char* const slab = shared_memory() + T::slabs_at + warp_index() * T::slab_bytes + lane * 16;
    const bool vectors = g.vectors && !g.planes;
    bool done = false;
    if (vectors && n < g.layout.n && m + row(kRows - 1) < g.m)
      with_rows_end(g, block_z() * g.layout.n + n, [&](const auto& end) QK_LAMBDA {
        auto place = end.at(m);
        QK_ROLL for (int begin = 0; begin < kRows; begin += kSlab) {
          fill(slab, begin);
          QK_ROLL for (int i = 0; i < kSlab; i += kRowsAhead, end.advance(place, row(kRowsAhead)))
            end.rows(place, row, [&](int r) { return shared_load<Pack<int32_t, 4>>(slab + (i + r) * (32 * 16)); });
        }
        done = true;
      });
    if (done) return;
    QK_ROLL for (int begin = 0; begin < kRows; begin += kSlab) {
      fill(slab, begin);
      if (vectors) finish_slab<Lanes<4>>(g, m + row(begin), n, slab);
      else finish_slab<Lanes<1>>(g, m + row(begin), n, slab);
    }
  }

 private:
  // The i-th row of a lane.
  QK_METHOD static constexpr int row(int i) { return i / 2 * 8 + i % 2; }

  QK_METHOD void fill(char* slab, int begin) const {
    QK_UNROLL for (int i = 0; i < kRows; ++i)
      if (i / kSlab * kSlab == begin) shared_store(slab + i % kSlab * (32 * 16), sums_of(i));
  }

  // Four channels of the lane's i-th row: columns of a product are pairs of neighbours, eight apart.
  QK_METHOD Pack<int32_t, 4> sums_of(int i) const {
    const int at = i / 2 * 4 + i % 2;
    return {{acc[0][at], acc[0][at + 2], acc[1][at], acc[1][at + 2]}};
  }

  template <class V>
  QK_METHOD static void finish_slab(const GemmArgs& g, int64_t m0, int64_t n0, const char* slab) {
    const auto finish = Finisher<V>::make(g.epilogue);
    for (int c = 0; c < 4 && n0 + c < g.layout.n; c += V::width) {
      const int64_t n = block_z() * g.layout.n + n0 + c;
      auto dequantize = Dequantizer<V>::make(epilogue_of_group(g), n);
      QK_ROLL for (int i = 0; i < kSlab; ++i) {
        const int64_t m = m0 + row(i);
        if (m >= g.m) break;
        use_row(dequantize, g, m);
        const auto four = shared_load<Pack<int32_t, 4>>(slab + i * (32 * 16));
        auto acc = V::set1i(0);
        QK_UNROLL for (int v = 0; v < 4; ++v)
          if (v / V::width * V::width == c) acc.v[v % V::width] = four.v[v];
        finish.whole(dequantize(acc), finish.residual_at(m, n), output_at(g, m, n));
      }
    }
  }
};

}  // namespace
}  // namespace qk::cuda
