// Sums, means and extremes over axes, and means over windows.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

int64_t reduce_workspace(const ReduceProblem& p, int threads);
void reduce(const ReduceProblem& p, Isa isa, const Parallel& parallel, void* workspace);

void average_pool(const AveragePoolProblem& p, Isa isa, const Parallel& parallel);

}  // namespace qk
