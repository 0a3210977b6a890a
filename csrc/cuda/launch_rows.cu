#include "tiles.cuh"

namespace qk::cuda {

int launch_gemm(const Plan& plan, const GemmArgs& g, const Rows& source, Stream stream) {
  if (plan.tile == TileName::hopper) return launch_hopper(plan, g, source, stream);
  return launch_any_tile(plan.tile, g, source, stream);
}

}  // namespace qk::cuda
