// C[M,N] = epilogue(x * w^T) on Hopper. Blocks stay, and take one tile after another; their warpgroups have roles:
//
//   producer    a Feed (feeds.cuh) fills the ring, and runs ahead of the consumers into the next tile
//   consumers   two; each multiplies half of the tile's rows by all of its channels and finishes them from its registers.
//               While one of them loads weights or waits for a product, the tensor cores are busy with the other's
#pragma once
#include "feeds.cuh"
#include "products_wgmma.cuh"

namespace qk::cuda {
namespace {

QK_DEVICE void consume(const GemmArgs& g) {
  Ring ring;
  each_tile(g, [&](int64_t m0, int64_t n0) {
    HopperProducts products;
    for (int k0 = 0; k0 < g.layout.k_padded(); k0 += Hopper::BK, ring.advance()) {
      ring.wait_filled();
      products.add(ring.x(), ring.w());
      warp_sync();
      if (lane_index() == 0) barrier_arrive(ring.freed());
    }
    products.finish(g, m0, n0);
    warp_sync();  // its lanes finish rows of different numbers, and multiply together
  });
}

template <class Feed>
QK_KERNEL(QK_WGMMA ? Hopper::threads : kNoThreads) hopper_kernel(QK_PARAMETER GemmArgs g, QK_PARAMETER Feed feed) {
  static_assert(Hopper::producers * Feed::producer_registers + Hopper::consumers * Feed::consumer_registers <=
                Hopper::threads * registers_of_a_thread(Hopper::threads));
  if constexpr (QK_WGMMA) {
    if (thread_index() == 0) Ring::init(Feed::arrivals, Hopper::consumers / 32);
    block_sync();
    if (thread_index() >= Hopper::consumers) {
      registers_release<Feed::producer_registers>();
      feed.run(g);
    } else {
      registers_claim<Feed::consumer_registers>();
      consume(g);
    }
  } else {
    not_made_for_this();
  }
}

}  // namespace
}  // namespace qk::cuda
