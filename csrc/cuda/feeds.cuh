// Who fills the ring of a Hopper kernel: the copy engine, for rows and for weights; threads, for windows of an image,
// whose padding holds a zero point that the engine cannot write.
#pragma once
#include "hopper.cuh"
#include "sources.cuh"

namespace qk::cuda {

// What lies outside, rows beyond M and K beyond its end, is filled with zeros: sums of rows that are never stored, and
// products with weights of zero.
inline TensorShape shape_of_rows(const Rows& rows) {
  return {2, {rows.k, rows.m, 1}, {rows.stride, 0}, {Hopper::BK, Hopper::BM, 1}};
}

// The packed weights as lines of two K quads, in panels.
inline TensorShape shape_of_weight(const PackedLayout& l) {
  const int64_t panels = l.groups * (l.n_padded() / kPanel);
  return {3, {128, l.k_padded() / 8, panels}, {128, l.panel_bytes()}, {128, Hopper::BK / 8, Hopper::BN / kPanel}};
}

namespace {

QK_DEVICE void load_weight(const TensorMap& w, const Ring& ring, const PackedLayout& l, int64_t n0, int k0) {
  bulk_load(ring.w(), w, ring.filled(), 0, k0 / 8, int(block_z() * (l.n_padded() / kPanel) + n0 / kPanel));
}

// One thread asks for whole tiles.
struct RowsFeed {
  static constexpr int arrivals = 1, producer_registers = 40, consumer_registers = 232;
  TensorMap x, w;

  QK_METHOD void run(const GemmArgs& g) const {
    if (thread_index() != Hopper::consumers) return;
    Ring ring;
    each_tile(g, [&](int64_t m0, int64_t n0) {
      for (int k0 = 0; k0 < g.layout.k_padded(); k0 += Hopper::BK, ring.advance()) {
        ring.wait_freed();
        barrier_expect(ring.filled(), Hopper::x_bytes + Hopper::w_bytes);
        bulk_load(ring.x(), x, ring.filled(), k0, int(m0));
        load_weight(w, ring, g.layout, n0, k0);
      }
    });
  }
};

// Every thread of the warpgroup copies its chunks of 16 rows, and says so two stages later, when they have landed.
struct WindowsFeed {
  static constexpr int arrivals = 1 + Hopper::producers, producer_registers = 104, consumer_registers = 200;
  static constexpr int ahead = 2, chunks = Hopper::BK / 16;
  static constexpr int row_step = Hopper::producers / chunks, own_rows = Hopper::BM / row_step;
  static_assert(ahead < Hopper::Stages);
  Windows<16> source;
  TensorMap w;

  QK_METHOD void run(const GemmArgs& g) const {
    const int thread = thread_index() - Hopper::consumers, chunk = thread % chunks, first = thread / chunks;
    Ring ring, landed;
    int under_way = 0;
    each_tile(g, [&](int64_t m0, int64_t n0) {
      Image::Row rows[own_rows];
      QK_UNROLL for (int i = 0; i < own_rows; ++i) rows[i] = source.row(m0 + first + i * row_step);
      for (int k0 = 0; k0 < g.layout.k_padded(); k0 += Hopper::BK, ring.advance()) {
        ring.wait_freed();
        if (thread == 0) {
          barrier_expect(ring.filled(), Hopper::w_bytes);
          load_weight(w, ring, g.layout, n0, k0);
        }
        const auto column = source.column(k0 + chunk * 16);
        QK_UNROLL for (int i = 0; i < own_rows; ++i) {
          const int r = first + i * row_step;
          source.copy(ring.x() + r * Hopper::BK + x_chunk<Hopper::BK>(r, chunk) * 16, rows[i], column);
        }
        copy_commit();
        if (under_way < ahead) ++under_way;
        else announce<ahead>(landed);
      }
    });
    for (; under_way > 0; --under_way) announce<0>(landed);
  }

 private:
  template <int Later>
  QK_METHOD static void announce(Ring& landed) {
    copy_wait<Later>();
    fence_async_proxy();  // what copies wrote, the tensor cores read
    barrier_arrive(landed.filled());
    landed.advance();
  }
};

}  // namespace
}  // namespace qk::cuda
