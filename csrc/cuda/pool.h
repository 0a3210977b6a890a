// Pooling on a GPU; core/problem.h.
#pragma once
#include "device.h"
#include "../core/problem.h"

namespace qk::cuda {

int pool2d(const Pool2dProblem& p, Stream stream);
int mean(const MeanProblem& p, Stream stream);

}  // namespace qk::cuda
