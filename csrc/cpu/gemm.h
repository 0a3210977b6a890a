// Linear layers: int8 by int8, and float by int8 (weight only). The fronts have checked the problem.
#pragma once
#include "gemm_plan.h"
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

GemmPlan plan_linear(const GemmProblem& p, Isa isa, int threads);
// `workspace` has plan.bytes, and the plan is that of a problem of these sizes and types for parallel.threads.
void gemm(const GemmProblem& p, const GemmPlan& plan, const Parallel& parallel, void* workspace);

int64_t weight_only_workspace(const WeightOnlyProblem& p, int threads);
void weight_only(const WeightOnlyProblem& p, Isa isa, const Parallel& parallel, void* workspace);

}  // namespace qk
