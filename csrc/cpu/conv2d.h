// Convolution as a GEMM over output pixels, and depthwise convolution as its own kernel.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

// Which way a layer takes; one predicate decides, see conv2d.cpp.
enum class Conv2dPath : uint8_t { depthwise, gemm };

Conv2dPath conv2d_path(const Conv2dProblem& p);
const char* conv2d_path_name(Conv2dPath path);

int64_t conv2d_workspace(const Conv2dProblem& p, Isa isa, int threads);  // bytes
int64_t conv2d_read_on(const Conv2dProblem& p, Isa isa);  // bytes behind a padded x that must be readable
void conv2d(const Conv2dProblem& p, Isa isa, const Parallel& parallel, void* workspace);

}  // namespace qk
