#include "tiles.cuh"

namespace qk::cuda {

int launch_gemm(TileName tile, const GemmArgs& g, const Windows<4>& source, Stream stream) { return launch_any_tile(tile, g, source, stream); }

}  // namespace qk::cuda
