// Convolution: as a GEMM over output pixels, by a depthwise kernel, or by an exact Winograd.
#pragma once
#include "conv_plan.h"
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

// The packed weight as a plan that takes Winograd reads it: core/winograd.h, for Conv2dProblem::winograd of calls to come.
void transform_weight(const Conv2dProblem& p, const ConvPlan& plan, const Parallel& parallel, int16_t* u);

// `workspace` has plan.bytes, and the plan is that of a problem of these sizes, types and strides for parallel.threads.
void conv2d(const Conv2dProblem& p, const ConvPlan& plan, const Parallel& parallel, void* workspace);

}  // namespace qk
