// C[M,N] = epilogue(x * w^T) on tensor cores, by blocks of BM rows and BN channels, BK of K at a time:
//
//   Stages tiles of x and w in shared memory, filled by asynchronous copies ahead of their use
//   x      16-byte chunks of rows, read by ldmatrix
//   w      panels of the packed weight as they lie. A lane's 16 bytes there are one K quad of four neighbouring
//          channels, one for each of four products: channel 4g + i of a group of 32 is column g of product i
//   sums   so a lane holds eight neighbouring channels of its rows; they go through shared memory, in the place of
//          the tiles, to threads that finish and store whole rows
//
// Where rows of x come from is a Source (sources.cuh): row(m) once, column(k) once a tile, and then
// copy(to, row, column) 16 bytes.
#pragma once
#include "output.cuh"

namespace qk::cuda {

template <int bm, int bn, int bk, int wm, int wn, int stages, int least_arch>
struct Tile {
  static constexpr int BM = bm, BN = bn, BK = bk, WM = wm, WN = wn, Stages = stages, LeastArch = least_arch;
  static constexpr int warps_n = BN / WN, threads = BM / WM * warps_n * 32;
  static constexpr int x_bytes = BM * BK, stage_bytes = (BM + BN) * BK;
  static constexpr int sum_bytes = BM * BN * 4;
  static constexpr int shared_bytes = Stages * stage_bytes > sum_bytes ? Stages * stage_bytes : sum_bytes;
  static_assert(WM % 16 == 0 && WN % 32 == 0 && BM % WM == 0 && BN % WN == 0);
};

namespace {

// Step 2 of a tile: sums to bytes. Here a thread takes V::width channels of every few rows, neighbours whole rows.
template <class V, class T>
QK_DEVICE void store_rows(const GemmArgs& g, int64_t m0, int64_t n0, const char* sums) {
  constexpr int columns = T::BN / V::width, step = T::threads / columns;
  static_assert(T::threads % columns == 0);
  const int column = int(thread_index() % columns * V::width);
  if (n0 + column >= g.layout.n) return;
  const int64_t n = block_z() * g.layout.n + n0 + column;
  const auto finish = Finisher<V>::make(g.epilogue);
  auto dequantize = Dequantizer<V>::make(epilogue_of_group(g), n);
  for (int r = thread_index() / columns; r < T::BM && m0 + r < g.m; r += step) {
    const int64_t m = m0 + r;
    use_row(dequantize, g.epilogue, m);
    const auto acc = shared_load<typename V::I>(sums + (r * T::BN + sum_word(r, column)) * 4);
    finish.whole(dequantize(acc), finish.residual_at(m, n), output_at(g, m, n));
  }
}

// Here a thread takes rows, and neighbours those of a plane.
template <class T>
QK_DEVICE void store_planes(const GemmArgs& g, int64_t m0, int64_t n0, const char* sums) {
  using V = Lanes<1>;
  constexpr int rows = T::BM < T::threads ? T::BM : T::threads, step = T::threads / rows;
  const auto finish = Finisher<V>::make(g.epilogue);
  const Epilogue of_group = epilogue_of_group(g);
  for (int r = thread_index() % rows; r < T::BM && m0 + r < g.m; r += rows) {
    const int64_t m = m0 + r;
    for (int column = thread_index() / rows; column < T::BN && n0 + column < g.layout.n; column += step) {
      const int64_t n = block_z() * g.layout.n + n0 + column;
      auto dequantize = Dequantizer<V>::make(of_group, n);
      use_row(dequantize, g.epilogue, m);
      const auto acc = shared_load<V::I>(sums + (r * T::BN + sum_word(r, column)) * 4);
      finish.whole(dequantize(acc), finish.residual_at(m, n), output_at(g, m, n));
    }
  }
}

template <class T, class Source>
QK_DEVICE void gemm_block(const GemmArgs& g, const Source& source) {
  constexpr int x_chunks = T::BK / 16, w_chunks = T::BN * T::BK / 16, panel = 16 * T::BK;
  constexpr int row_step = T::threads / x_chunks, own_rows = T::BM / row_step;
  static_assert(T::BM % row_step == 0 && w_chunks % T::threads == 0);
  char* const memory = shared_memory();
  const int lane = lane_index(), warp = warp_index(), group = lane / 4, quad = lane % 4;
  const int wm = warp / T::warps_n * T::WM, wn = warp % T::warps_n * T::WN;
  const Raster::At at = g.raster.at(block_x());
  const int64_t m0 = at.m * T::BM, n0 = at.n * T::BN;
  const int k_padded = int(g.layout.k_padded()), k_tiles = (k_padded + T::BK - 1) / T::BK;
  const int8_t* const weight = g.weight + block_z() * g.layout.group_bytes() + n0 / kPanel * g.layout.panel_bytes();
  const int panels = int((g.layout.n_padded() - n0) / kPanel);

  const int chunk = thread_index() % x_chunks, first_row = thread_index() / x_chunks;
  typename Source::Row rows[own_rows];
  QK_UNROLL for (int i = 0; i < own_rows; ++i) rows[i] = source.row(m0 + first_row + i * row_step);

  const auto load = [&](int tile) {
    char* const x = memory + tile % T::Stages * T::stage_bytes;
    char* const w = x + T::x_bytes;
    const int k0 = tile * T::BK;
    const auto column = source.column(k0 + chunk * 16);
    QK_UNROLL for (int i = 0; i < own_rows; ++i) {
      const int r = first_row + i * row_step;
      source.copy(x + r * T::BK + x_chunk<T::BK>(r, chunk) * 16, rows[i], column);
    }
    QK_UNROLL for (int i = 0; i < w_chunks / T::threads; ++i) {
      const int at = thread_index() + i * T::threads, p = at / T::BK, row = at % T::BK / 4, piece = at % 4;
      const bool exists = p < panels && k0 + row * 4 < k_padded;
      const int8_t* from = weight + p * g.layout.panel_bytes() + k0 * 16 + at % T::BK * 16;
      copy_async<16>(w + p * panel + row * 64 + w_piece(row, piece) * 16, exists ? from : weight, exists);
    }
  };

  int32_t acc[T::WM / 16][T::WN / 32][4][4] = {};
  QK_UNROLL for (int tile = 0; tile < T::Stages - 1; ++tile) {
    if (tile < k_tiles) load(tile);
    copy_commit();
  }
  for (int tile = 0; tile < k_tiles; ++tile) {
    copy_wait<T::Stages - 2>();
    block_sync();
    if (tile + T::Stages - 1 < k_tiles) load(tile + T::Stages - 1);
    copy_commit();
    const char* const x = memory + tile % T::Stages * T::stage_bytes;
    const char* const w = x + T::x_bytes;
    QK_UNROLL for (int k = 0; k < T::BK / 32; ++k) {
      uint32_t a[T::WM / 16][4];
      QK_UNROLL for (int i = 0; i < T::WM / 16; ++i) {
        const int r = wm + i * 16 + lane % 16;
        ldmatrix_x4(a[i], x + r * T::BK + x_chunk<T::BK>(r, k * 2 + lane / 16) * 16);
      }
      QK_UNROLL for (int j = 0; j < T::WN / 32; ++j) {
        const int row = k * 8 + quad;
        const char* const from = w + ((wn + j * 32) / 16 + group / 4) * panel + w_piece(row, group % 4) * 16;
        const Words b0 = shared_load<Words>(from + row * 64);
        const Words b1 = shared_load<Words>(from + row * 64 + 256);
        QK_UNROLL for (int i = 0; i < T::WM / 16; ++i)
          QK_UNROLL for (int v = 0; v < 4; ++v) multiply(acc[i][j][v], a[i], b0.v[v], b1.v[v]);
      }
    }
  }

  block_sync();  // the last tile has been read, and no copy is under way: the latest groups are empty
  QK_UNROLL for (int i = 0; i < T::WM / 16; ++i)
    QK_UNROLL for (int j = 0; j < T::WN / 32; ++j)
      QK_UNROLL for (int half = 0; half < 2; ++half) {
        const int r = wm + i * 16 + half * 8 + group;
        char* const to = memory + r * T::BN * 4;
        QK_UNROLL for (int b = 0; b < 2; ++b) {
          Pack<int32_t, 4> sums;
          QK_UNROLL for (int v = 0; v < 4; ++v) sums.v[v] = acc[i][j][v][half * 2 + b];
          shared_store(to + sum_word(r, wn + j * 32 + quad * 8 + b * 4) * 4, sums);
        }
      }
  block_sync();
  if (g.planes) store_planes<T>(g, m0, n0, memory);
  else if (g.vectors) store_rows<Lanes<4>, T>(g, m0, n0, memory);
  else store_rows<Lanes<1>, T>(g, m0, n0, memory);
}

template <class T, class Source>
QK_KERNEL(T::threads) gemm_kernel(QK_PARAMETER GemmArgs g, QK_PARAMETER Source source) {
  // Each architecture's code holds the tiles that are made for it.
  if constexpr ((QK_ARCH >= 800) == (T::LeastArch >= 800)) gemm_block<T>(g, source);
}

}  // namespace
}  // namespace qk::cuda
