// Convolutions on a GPU: a GEMM over output pixels, whose rows are gathered from the image, or depthwise. x is contiguous,
// NHWC or NCHW; the rest is as in gemm.h.
#pragma once
#include "device.h"
#include "../core/problem.h"

namespace qk::cuda {

int64_t conv2d_workspace(const Conv2dProblem& p);  // bytes, of the device; aligned to 256
int conv2d(const Conv2dProblem& p, void* workspace, Stream stream);

}  // namespace qk::cuda
