// The tile of the Hopper kernels, its roles, and their shared memory: a ring of stages, each with a barrier that opens when
// it is filled and one that opens when it is free again.
#pragma once
#include "output.cuh"
#include "prim_async.cuh"

namespace qk::cuda {

struct Hopper {
  static constexpr int BM = 256, BN = 128, BK = 128, Stages = 4;
  static constexpr int consumers = 256, producers = 128, threads = consumers + producers;
  static constexpr int x_bytes = BM * BK, w_bytes = BN * BK, stage_bytes = x_bytes + w_bytes;
  static constexpr int slab_bytes = 8 * 32 * 16;       // a consumer warp's, through which its sums pass
  static constexpr int slabs_at = Stages * stage_bytes, barriers_at = slabs_at + consumers / 32 * slab_bytes;
  static constexpr int shared_bytes = barriers_at + 2 * Stages * 8;
};

// What warpgroups trade are the registers that their block began with: as many a thread as fit, in eights. A claim for more
// than was released waits for ever.
constexpr int registers_of_a_thread(int threads) { return 65536 / threads / 8 * 8; }

namespace {

// A role's place in the ring. Parity is that of the phase in which its stage is filled.
struct Ring {
  int stage = 0, parity = 0;

  QK_METHOD static Barrier* barriers() { return reinterpret_cast<Barrier*>(shared_memory() + Hopper::barriers_at); }
  QK_METHOD Barrier* filled() const { return barriers() + stage; }
  QK_METHOD Barrier* freed() const { return barriers() + Hopper::Stages + stage; }
  QK_METHOD char* x() const { return shared_memory() + stage * Hopper::stage_bytes; }
  QK_METHOD char* w() const { return x() + Hopper::x_bytes; }

  QK_METHOD static void init(int arrivals_filled, int arrivals_freed) {
    for (Ring ring; ring.parity == 0; ring.advance()) {
      barrier_init(ring.filled(), arrivals_filled);
      barrier_init(ring.freed(), arrivals_freed);
    }
    barrier_fence();
  }
  // Returns when the stage is free: at once in the first round.
  QK_METHOD void wait_freed() const { barrier_wait(freed(), parity ^ 1); }
  QK_METHOD void wait_filled() const { barrier_wait(filled(), parity); }
  QK_METHOD void advance() {
    if (++stage < Hopper::Stages) return;
    stage = 0;
    parity ^= 1;
  }
};

// The tiles of this block, one after another, the same for every role.
template <class Body>
QK_DEVICE void each_tile(const GemmArgs& g, Body body) {
  const int64_t tiles = g.raster.m_tiles * g.raster.n_tiles;
  for (int64_t tile = block_x(); tile < tiles; tile += blocks_x()) {
    const Raster::At at = g.raster.at(tile);
    body(at.m * Hopper::BM, at.n * Hopper::BN);
  }
}

}  // namespace
}  // namespace qk::cuda
