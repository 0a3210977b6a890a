// Normalizations and softmax: rows of a value, or the groups of an image.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

int64_t layer_norm_workspace(const LayerNormProblem& p, int threads);
void layer_norm(const LayerNormProblem& p, Isa isa, const Parallel& parallel, void* workspace);

int64_t group_norm_workspace(const GroupNormProblem& p, int threads);
void group_norm(const GroupNormProblem& p, Isa isa, const Parallel& parallel, void* workspace);

int64_t softmax_workspace(const SoftmaxProblem& p, int threads);
void softmax(const SoftmaxProblem& p, Isa isa, const Parallel& parallel, void* workspace);

}  // namespace qk
