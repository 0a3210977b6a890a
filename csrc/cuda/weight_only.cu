#include "weight_only.cuh"

#include "gemm.h"
#include "launch.cuh"

namespace qk::cuda {

int weight_only(const WeightOnlyProblem& p, Stream stream) {
  if (p.m == 0) return 0;
  WeightOnlyArgs a;
  a.out = args_of(p);
  a.x = p.x, a.x_type = p.x_type, a.x_stride = p.x_stride;
  const int rows = p.m == 1 ? 1 : kWeightOnlyRows;
  const Grid grid{ceil_div(p.m, rows), ceil_div(p.n, kWeightOnlyThreads)};
  if (p.m == 1) return launch<weight_only_kernel<1>>(grid, kWeightOnlyThreads, 0, stream, a);
  return launch<weight_only_kernel<kWeightOnlyRows>>(grid, kWeightOnlyThreads, 0, stream, a);
}

}  // namespace qk::cuda
