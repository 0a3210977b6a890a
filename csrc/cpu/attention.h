// Attention in float32, of values that are float32 or int8.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

int64_t attention_workspace(const AttentionProblem& p, int threads);
void attention(const AttentionProblem& p, Isa isa, const Parallel& parallel, void* workspace);

}  // namespace qk
