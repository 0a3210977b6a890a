// Convolution as a GEMM over output pixels, and depthwise convolution as its own kernel.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

int64_t conv2d_workspace(const Conv2dProblem& p, Isa isa, int threads);  // bytes
int64_t conv2d_read_on(const Conv2dProblem& p, Isa isa);  // bytes behind a padded x that must be readable
void conv2d(const Conv2dProblem& p, Isa isa, const Parallel& parallel, void* workspace);

}  // namespace qk
