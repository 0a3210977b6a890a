// The end of a GEMM whose K was split: adds the sums of all splits, from the first to the last, and finishes them.
// Nothing is shared while splits run, and nothing waits for another.
#pragma once
#include "launch.cuh"
#include "output.cuh"

namespace qk::cuda {

constexpr int kSplitThreads = 128;

// How many there are.
constexpr int64_t split_sums(const PackedLayout& l, int64_t m, int64_t splits) {
  return splits > 1 ? splits * l.groups * m * l.n_padded() : 0;
}

int add_splits(const GemmArgs& g, Stream stream);

}  // namespace qk::cuda
