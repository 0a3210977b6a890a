#include "tiles.cuh"

namespace qk::cuda {

int launch_gemm(TileName tile, const GemmArgs& g, const Rows& source, Stream stream) {
  return tile == TileName::hopper ? launch_tile<Hopper>(g, source, stream) : launch_any_tile(tile, g, source, stream);
}

}  // namespace qk::cuda
