// The names of prim_async.cuh in the emulator: barriers are kept beside shared memory, by their address.
#pragma once
#include "bulk.h"
#include "prim_sm90.h"

namespace qk {
namespace {

using Barrier = uint64_t;

QK_DEVICE void barrier_init(Barrier* b, int arrivals) { emu::init_barrier(shared_address(b), arrivals); }
QK_DEVICE void barrier_fence() { emu::fence_barriers(); }
QK_DEVICE void barrier_arrive(Barrier* b) { emu::arrive(shared_address(b), 0); }
QK_DEVICE void barrier_expect(Barrier* b, int bytes) { emu::arrive(shared_address(b), bytes); }
QK_DEVICE void barrier_wait(Barrier* b, int parity) { emu::wait_for_phase(shared_address(b), parity); }

QK_DEVICE void bulk_load(void* to, const cuda::TensorMap& map, Barrier* b, int c0, int c1) {
  emu::bulk_load({map, {c0, c1, 0}, shared_address(to), shared_address(b)}, 2);
}
QK_DEVICE void bulk_load(void* to, const cuda::TensorMap& map, Barrier* b, int c0, int c1, int c2) {
  emu::bulk_load({map, {c0, c1, c2}, shared_address(to), shared_address(b)}, 3);
}

QK_DEVICE void join_warpgroup(emu::Thread*) {}
template <int N>
QK_DEVICE void registers_release() {
  emu::meet(join_warpgroup, nullptr, nullptr, emu::kWarpgroup);
  emu::release_registers(N);
}
template <int N>
QK_DEVICE void registers_claim() {
  emu::meet(join_warpgroup, nullptr, nullptr, emu::kWarpgroup);
  emu::claim_registers(N);
}

}  // namespace
}  // namespace qk
