// C[M,N] = epilogue(x * w^T) on tensor cores, by blocks of BM rows and BN channels, BK of K at a time, all of K or, where
// it is split, block_y()'s share:
//
//   Stages tiles of x and w in shared memory, filled by asynchronous copies ahead of their use
//   x      16-byte chunks of rows
//   w      panels of the packed weight as they lie. A lane's 16 bytes there are one K quad of four neighbouring
//          channels, one for each of four products: channel 4g + i of a group of 32 is column g of product i
//   sums   so a lane holds neighbouring channels of its rows; they go through shared memory, in the place of the
//          tiles, to threads that finish and store whole rows
//
// Where rows of x come from is a Source (sources.cuh): row(m) once, column(k) once a tile, and then
// copy(to, row, column) 16 bytes.
#pragma once
#include "products_mma.cuh"
#include "rows_end.cuh"

namespace qk::cuda {
namespace {

// Fills stages: what a thread copies of every tile.
template <class T, class Source>
struct Loader {
  static constexpr int x_chunks = T::BK / 16, w_chunks = T::BN * T::BK / 16;
  static constexpr int row_step = T::threads / x_chunks, own_rows = T::BM / row_step;
  static_assert(T::BM % row_step == 0 && w_chunks % T::threads == 0);

  const Source& source;
  const int8_t* weight;
  int panels, k_padded, end;  // tiles of K before `end` are this block's
  int chunk = thread_index() % x_chunks, first_row = thread_index() / x_chunks;
  typename Source::Row rows[own_rows];

  QK_METHOD Loader(const GemmArgs& g, const Source& source, int64_t m0, int64_t n0)
      : source(source), weight(g.weight + block_z() * g.layout.group_bytes() + n0 / kPanel * g.layout.panel_bytes()),
        panels(int((g.layout.n_padded() - n0) / kPanel)), k_padded(int(g.layout.k_padded())),
        end(share(g, block_y() + 1)) {
    QK_UNROLL for (int i = 0; i < own_rows; ++i) rows[i] = source.row(m0 + first_row + i * row_step);
  }

  // The first tile of K of a split.
  QK_METHOD static int share(const GemmArgs& g, int64_t split) {
    const int tiles = int(g.layout.k_padded() + T::BK - 1) / T::BK;
    return tiles * int(split) / int(g.splits);
  }

  QK_METHOD static char* x_of(int tile) { return shared_memory() + tile % T::Stages * ((T::BM + T::BN) * T::BK); }
  QK_METHOD static char* w_of(int tile) { return x_of(tile) + T::BM * T::BK; }

  QK_METHOD void load(int tile) {
    const int k0 = tile * T::BK;
    const auto column = source.column(k0 + chunk * 16);
    QK_UNROLL for (int i = 0; i < own_rows; ++i) {
      const int r = first_row + i * row_step;
      source.copy(x_of(tile) + r * T::BK + x_chunk<T::BK>(r, chunk) * 16, rows[i], column);
    }
    QK_UNROLL for (int i = 0; i < w_chunks / T::threads; ++i) {
      const int at = thread_index() + i * T::threads, p = at / T::BK, row = at % T::BK / 4, piece = at % 4;
      const bool exists = p < panels && k0 + row * 4 < k_padded;
      const int8_t* from = weight + (p * k_padded + k0 + at % T::BK) * 16;
      copy_async<16>(w_of(tile) + p * (16 * T::BK) + row * 64 + w_piece(row, piece) * 16, exists ? from : weight, exists);
    }
  }

  QK_METHOD void start(int begin) {
    QK_UNROLL for (int i = 0; i < T::Stages - 1; ++i) {
      if (begin + i < end) load(begin + i);
      copy_commit();
    }
  }

  // Returns when a tile is there, and asks for one in the place of the tile before.
  QK_METHOD void next(int tile) {
    copy_wait<T::Stages - 2>();
    block_sync();
    if (tile + T::Stages - 1 < end) load(tile + T::Stages - 1);
    copy_commit();
  }
};

// Sums to bytes. Here a thread takes V::width channels of every few rows, neighbours whole rows.
template <class V, class T>
QK_DEVICE void store_rows(const GemmArgs& g, int64_t m0, int64_t n0, const char* sums) {
  constexpr int columns = T::BN / V::width, step = T::threads / columns;
  static_assert(T::threads % columns == 0);
  const int column = int(thread_index() % columns * V::width);
  if (n0 + column >= g.layout.n) return;
  const int64_t n = block_z() * g.layout.n + n0 + column;
  const int rows = int(g.m - m0 < T::BM ? g.m - m0 : T::BM);
  int r = thread_index() / columns;
  const auto at = [&](int row) { return sums + (row * T::BN + sum_word(row, column)) * 4; };
  [[maybe_unused]] const auto offset = [](int i) { return i * step; };
  if constexpr (V::width == 4) {
    with_rows_end(g, n, [&](const auto& end) QK_LAMBDA {
      auto place = end.at(m0 + r);
      const char* const from[] = {at(r), at(r + step)};  // sum_word repeats itself after eight rows
      static_assert(step % 4 == 0);
      QK_ROLL for (int64_t moved = 0; r + (kRowsAhead - 1) * step < rows; r += kRowsAhead * step, moved += kRowsAhead * step * T::BN * 4) {
        end.rows(place, offset,
                 [&](int i) { return shared_load<typename V::I>(from[i % 2] + moved + i / 2 * (2 * step * T::BN * 4)); });
        end.advance(place, kRowsAhead * step);
      }
    });
  }
  const auto finish = Finisher<V>::make(g.epilogue);
  auto dequantize = Dequantizer<V>::make(epilogue_of_group(g), n);
  QK_ROLL for (; r < rows; r += step) {
    const int64_t m = m0 + r;
    use_row(dequantize, g, m);
    finish.whole(dequantize(shared_load<typename V::I>(at(r))), finish.residual_at(m, n), output_at(g, m, n));
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
      use_row(dequantize, g, m);
      const auto acc = shared_load<V::I>(sums + (r * T::BN + sum_word(r, column)) * 4);
      finish.whole(dequantize(acc), finish.residual_at(m, n), output_at(g, m, n));
    }
  }
}

// Sums of a share of K, as they are.
template <class T>
QK_DEVICE void store_sums(const GemmArgs& g, int64_t m0, int64_t n0, const char* sums) {
  constexpr int columns = T::BN / 4, step = T::threads / columns;
  const int column = thread_index() % columns * 4;
  if (n0 + column >= g.layout.n_padded()) return;
  for (int r = thread_index() / columns; r < T::BM && m0 + r < g.m; r += step) {
    const auto four = shared_load<Pack<int32_t, 4>>(sums + (r * T::BN + sum_word(r, column)) * 4);
    global_store(split_sums_at(g, block_y(), m0 + r, n0 + column), four);
  }
}

template <class T, class Source>
QK_DEVICE void gemm_block(const GemmArgs& g, const Source& source) {
  const Raster::At at = g.raster.at(block_x());
  const int64_t m0 = at.m * T::BM, n0 = at.n * T::BN;
  Loader<T, Source> loader(g, source, m0, n0);
  MmaProducts<T> products;
  const int begin = loader.share(g, block_y());
  loader.start(begin);
  for (int tile = begin; tile < loader.end; ++tile) {
    loader.next(tile);
    products.add(loader.x_of(tile), loader.w_of(tile));
  }
  block_sync();  // the last tile has been read, and no copy is under way: the latest groups are empty
  char* const sums = shared_memory();
  products.store(sums);
  block_sync();
  if (g.splits > 1) store_sums<T>(g, m0, n0, sums);
  else if (g.planes) store_planes<T>(g, m0, n0, sums);
  else if (g.vectors) store_rows<Lanes<4>, T>(g, m0, n0, sums);
  else store_rows<Lanes<1>, T>(g, m0, n0, sums);
}

// Each architecture's code holds the tiles that are made for it.
template <class T>
constexpr bool made_for_this() { return (QK_ARCH >= 800) == (T::LeastArch >= 800); }

template <class T, class Source>
QK_KERNEL(made_for_this<T>() ? T::threads : kNoThreads) gemm_kernel(QK_PARAMETER GemmArgs g, QK_PARAMETER Source source) {
  if constexpr (made_for_this<T>()) gemm_block<T>(g, source);
  else not_made_for_this();
}

// Of shared memory: the stages, and in their place the sums.
template <class T>
constexpr int shared_bytes() {
  const int stages = T::Stages * (T::BM + T::BN) * T::BK, sums = T::BM * T::BN * 4;
  return stages > sums ? stages : sums;
}

}  // namespace
}  // namespace qk::cuda
