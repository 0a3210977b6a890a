// Pooling.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

void pool2d(const Pool2dProblem& p, Isa isa, const Parallel& parallel);
void mean(const MeanProblem& p, const Parallel& parallel);

}  // namespace qk
