// What transformers do to tokens between linear layers, in float32: layer normalization and attention.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

void layer_norm(const LayerNormProblem& p, Isa isa, const Parallel& parallel);

int64_t attention_workspace(const AttentionProblem& p, int threads);
void attention(const AttentionProblem& p, Isa isa, const Parallel& parallel, void* workspace);

}  // namespace qk
