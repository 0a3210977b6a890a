// Any function of int8 to int8 on a GPU; core/problem.h.
#pragma once
#include "device.h"
#include "../core/problem.h"

namespace qk::cuda {

int lookup(const LookupProblem& p, Stream stream);

}  // namespace qk::cuda
