// Functions of one value, and of two that are as large or repeated along axes.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

void unary(const UnaryProblem& p, Isa isa, const Parallel& parallel);
void binary(const BinaryProblem& p, Isa isa, const Parallel& parallel);

}  // namespace qk
