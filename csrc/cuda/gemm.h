// Linear layers on a GPU. Pointers of a problem are the device's; nothing is allocated, and nothing waits for the device.
#pragma once
#include "device.h"
#include "../core/problem.h"

namespace qk::cuda {

int64_t gemm_workspace(const GemmProblem& p);  // bytes, of the device; aligned to 256
int gemm(const GemmProblem& p, void* workspace, Stream stream);

int weight_only(const WeightOnlyProblem& p, Stream stream);

}  // namespace qk::cuda
