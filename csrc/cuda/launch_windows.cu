#include "tiles.cuh"

namespace qk::cuda {

int launch_gemm(const Plan& plan, const GemmArgs& g, const AnyWindows& source, Stream stream) {
  return launch_any_tile(plan.tile, g, source, stream);
}

}  // namespace qk::cuda
