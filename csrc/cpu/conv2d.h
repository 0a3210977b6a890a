// Convolution as a GEMM over output pixels, and depthwise convolution as its own kernel.
#pragma once
#include "conv_plan.h"
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

// `workspace` has plan.bytes, and the plan is that of a problem of these sizes, types and strides for parallel.threads.
void conv2d(const Conv2dProblem& p, const ConvPlan& plan, const Parallel& parallel, void* workspace);

}  // namespace qk
