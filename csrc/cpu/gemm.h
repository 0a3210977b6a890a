// Linear layers: int8 by int8, and float by int8 (weight only). The fronts have checked the problem.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

int64_t gemm_workspace(const GemmProblem& p, Isa isa, int threads);  // bytes
void gemm(const GemmProblem& p, Isa isa, const Parallel& parallel, void* workspace);

int64_t weight_only_workspace(const WeightOnlyProblem& p, int threads);
void weight_only(const WeightOnlyProblem& p, Isa isa, const Parallel& parallel, void* workspace);

}  // namespace qk
