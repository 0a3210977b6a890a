// Functions of one value, of two that are as large or repeated along axes, and a factor and a summand a channel.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

void unary(const UnaryProblem& p, Isa isa, const Parallel& parallel);
void binary(const BinaryProblem& p, Isa isa, const Parallel& parallel);
void affine(const AffineProblem& p, Isa isa, const Parallel& parallel);

}  // namespace qk
