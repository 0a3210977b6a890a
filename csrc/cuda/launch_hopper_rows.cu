#include "launch_hopper.cuh"

namespace qk::cuda {

int launch_hopper(const Plan& plan, const GemmArgs& g, const Rows& source, Stream stream) {
  RowsFeed feed;
  if (const int error = make_tensor_map(&feed.x, source.x, shape_of_rows(source))) return error;
  if (const int error = make_tensor_map(&feed.w, g.weight, shape_of_weight(g.layout))) return error;
  return launch_feed(plan, g, feed, stream);
}

}  // namespace qk::cuda
