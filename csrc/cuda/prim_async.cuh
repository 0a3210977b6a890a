// Barriers in shared memory, the copy engine that arrives at them, and registers that warpgroups trade: Hopper's means for
// warps with different roles. PTX ISA, "mbarrier", "cp.async.bulk.tensor", "setmaxnreg".
//
// A phase of a barrier ends when its arrivals and all bytes that were expected are there. barrier_wait returns once the
// phase of that parity has ended, so that a first wait for parity 1 returns at once.
#pragma once
#include "prim_sm90.cuh"
#include "tensor_map.h"

#ifdef QK_EMU
#include "emu/prim_async.h"
#else

namespace qk {
namespace {

using Barrier = uint64_t;

QK_DEVICE void barrier_init(Barrier* b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}
// Makes initialised barriers known to the copy engine.
QK_DEVICE void barrier_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
QK_DEVICE void barrier_arrive(Barrier* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
// Arrives, and lets the phase wait for so many bytes more.
QK_DEVICE void barrier_expect(Barrier* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
QK_DEVICE void barrier_wait(Barrier* b, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra again;\n"
      "}" ::"r"(shared_address(b)), "r"(parity) : "memory");
}

// A box of the tensor from these coordinates on, innermost first, to shared memory; its bytes arrive at the barrier.
QK_DEVICE void bulk_load(void* to, const cuda::TensorMap& map, Barrier* b, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                   shared_address(to)), "l"(&map), "r"(shared_address(b)), "r"(c0), "r"(c1) : "memory");
}
QK_DEVICE void bulk_load(void* to, const cuda::TensorMap& map, Barrier* b, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                   shared_address(to)), "l"(&map), "r"(shared_address(b)), "r"(c0), "r"(c1), "r"(c2) : "memory");
}

// A warpgroup keeps this many registers a thread, or gets them.
template <int N>
QK_DEVICE void registers_release() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
QK_DEVICE void registers_claim() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

}  // namespace
}  // namespace qk
#endif
