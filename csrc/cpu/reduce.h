// Sums, means and extremes over axes, sums up to each place of one, and means over windows.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

int64_t reduce_workspace(const ReduceProblem& p, int threads);
void reduce(const ReduceProblem& p, Isa isa, const Parallel& parallel, void* workspace);

// Along the middle axis of x [outer, count, inner], place by place.
struct ScanProblem {
  int64_t outer = 1, count = 1, inner = 1;
  const float* x = nullptr;
  float* y = nullptr;
};
void cumsum(const ScanProblem& p, const Parallel& parallel);  // y as large as x: the sums up to each place
void argmax(const ScanProblem& p, const Parallel& parallel);  // y [outer, inner]: where the first of the largest is; a NaN is largest

void average_pool(const AveragePoolProblem& p, Isa isa, const Parallel& parallel);

}  // namespace qk
