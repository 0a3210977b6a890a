// A launch of the Hopper kernel with a Feed.
#pragma once
#include "gemm_hopper.cuh"
#include "tiles.cuh"

namespace qk::cuda {

static_assert(has_shape<Hopper>(TileName::hopper));

template <class Feed>
int launch_feed(const Plan& plan, GemmArgs g, const Feed& feed, Stream stream) {
  g.raster = {ceil_div(g.m, Hopper::BM), ceil_div(g.layout.n, Hopper::BN)};
  const Grid grid{plan.blocks, 1, g.layout.groups};
  return launch<hopper_kernel<Feed>>(grid, Hopper::threads, Hopper::shared_bytes, stream, g, feed);
}

}  // namespace qk::cuda
