// A block's products by Hopper's warpgroups, turned around: channels are the 64 rows of a product, rows of x its columns.
//
//   x      x_chunk<128> is the 128-byte swizzle that a descriptor can name: the tensor cores read tiles as they are copied
//   w      through registers: a lane's 16 bytes are one K quad of four neighbouring channels, rows g and g + 8 of two
//          products; so a lane's sums are four neighbouring channels too
//   groups each takes half of the block's rows of x, and all of its channels
#pragma once
#include "output.cuh"
#include "prim_sm90.cuh"

namespace qk::cuda {

struct HopperProducts;

struct Hopper {
  static constexpr int BM = 256, BN = 128, BK = 128, Stages = 4, LeastArch = 900, threads = 256;
  using Products = HopperProducts;
};

#if QK_WGMMA
struct HopperProducts {
  using T = Hopper;
  int32_t acc[2][64] = {};
  int lane = lane_index(), group = lane / 4, quad = lane % 4;
  int warp = warp_index() % 4, first = warp_index() / 4 * 128;

  QK_METHOD void add(const char* x, const char* w) {
    const char* const from = w + (warp * 2 + group / 4) * (16 * T::BK) + quad * 64 + w_piece(quad, group % 4) * 16;
    uint32_t a[T::BK / 32][2][4];
    QK_UNROLL for (int k = 0; k < T::BK / 32; ++k) {
      const Words b0 = shared_load<Words>(from + k * 512), b1 = shared_load<Words>(from + k * 512 + 256);
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

  QK_METHOD void store(char* sums) const {
    QK_UNROLL for (int i = 0; i < 32; ++i) {  // columns of a product: pairs of neighbours, eight apart
      const int r = first + i / 2 * 8 + quad * 2 + i % 2, column = warp * 32 + group * 4, at = i / 2 * 4 + i % 2;
      const Pack<int32_t, 4> four = {{acc[0][at], acc[0][at + 2], acc[1][at], acc[1][at + 2]}};
      shared_store(sums + (r * T::BN + sum_word(r, column)) * 4, four);
    }
  }
};
#endif

}  // namespace qk::cuda
