// A block's products by mma.sync: ldmatrix for x, and for w the panels as they lie.
#pragma once
#include "output.cuh"

namespace qk::cuda {

// BM rows by BN channels a block, BK of K a stage; WM by WN a warp.
template <int bm, int bn, int bk, int wm, int wn, int stages, int least_arch>
struct Tile {
  static constexpr int BM = bm, BN = bn, BK = bk, WM = wm, WN = wn, Stages = stages, LeastArch = least_arch;
  static constexpr int warps_n = BN / WN, threads = BM / WM * warps_n * 32;
  static_assert(WM % 16 == 0 && WN % 32 == 0 && BM % WM == 0 && BN % WN == 0);
};

// The sums of one warp: WM / 16 by WN / 32 groups of four products, of 16 rows by 8 channels each.
template <class T>
struct MmaProducts {
  int32_t acc[T::WM / 16][T::WN / 32][4][4] = {};
  int lane = lane_index(), group = lane / 4, quad = lane % 4;
  int wm = warp_index() / T::warps_n * T::WM, wn = warp_index() % T::warps_n * T::WN;

  QK_METHOD void add(const char* x, const char* w) {
    QK_UNROLL for (int k = 0; k < T::BK / 32; ++k) {
      uint32_t a[T::WM / 16][4];
      QK_UNROLL for (int i = 0; i < T::WM / 16; ++i) {
        const int r = wm + i * 16 + lane % 16;
        ldmatrix_x4(a[i], x + r * T::BK + x_chunk<T::BK>(r, k * 2 + lane / 16) * 16);
      }
      QK_UNROLL for (int j = 0; j < T::WN / 32; ++j) {
        const char* const from = w + ((wn + j * 32) / 16 + group / 4) * (16 * T::BK) + (k * 8 + quad) * 64 + w_piece(quad, group % 4) * 16;
        const Words b0 = shared_load<Words>(from), b1 = shared_load<Words>(from + 256);
        QK_UNROLL for (int i = 0; i < T::WM / 16; ++i)
          QK_UNROLL for (int v = 0; v < 4; ++v) multiply(acc[i][j][v], a[i], b0.v[v], b1.v[v]);
      }
    }
  }

  QK_METHOD void store(char* sums) const {
    QK_UNROLL for (int i = 0; i < T::WM / 16; ++i)
      QK_UNROLL for (int j = 0; j < T::WN / 32; ++j)
        QK_UNROLL for (int half = 0; half < 4; ++half) {  // of the rows, then of the eight channels
          const int r = wm + i * 16 + half / 2 * 8 + group, column = wn + j * 32 + quad * 8 + half % 2 * 4;
          const Pack<int32_t, 4> four = {{acc[i][j][0][half], acc[i][j][1][half], acc[i][j][2][half], acc[i][j][3][half]}};
          shared_store(sums + (r * T::BN + sum_word(r, column)) * 4, four);
        }
  }
};

}  // namespace qk::cuda
