// Barriers in shared memory and the copy engine, emulated. A copy lands as late as it can: when a thread waits for its
// barrier and nothing else can run. Which one does is random.
#pragma once
#include "../tensor_map.h"
#include "emu.h"

namespace qk::emu {

struct BulkCopy {
  cuda::TensorMap map;
  int64_t first[3];        // coordinates, innermost first
  uint32_t to, barrier;    // in shared memory
  int epoch = 0;           // when it was asked for, and what was known then
  Clock known{};
};

void init_barrier(uint32_t at, int arrivals);
void fence_barriers();
void arrive(uint32_t at, int expected_bytes);
void wait_for_phase(uint32_t at, int parity);
void bulk_load(BulkCopy copy, int rank);

}  // namespace qk::emu
