#include "split.cuh"

namespace qk::cuda {
namespace {

// `line` neighbouring threads take V::width channels each of one row; or, of planes, the rows of one channel.
template <class V>
QK_KERNEL(kSplitThreads) add_splits_kernel(QK_PARAMETER GemmArgs g, QK_PARAMETER Divisor line) {
  const uint32_t at = uint32_t(block_x() * kSplitThreads + thread_index()), across = line.quotient(at), along = at - across * line.divisor;
  const int64_t m = g.planes ? along : across, n = (g.planes ? across : along) * V::width;
  if (m >= g.m || n >= g.layout.n) return;
  auto acc = V::set1i(0);
  for (int split = 0; split < g.splits; ++split) acc = V::addi(acc, V::load_i32(split_sums_at(g, split, m, n)));
  const int64_t channel = block_z() * g.layout.n + n;
  const auto finish = Finisher<V>::make(g.epilogue);
  auto dequantize = Dequantizer<V>::make(epilogue_of_group(g), channel);
  use_row(dequantize, g, m);
  finish.whole(dequantize(acc), finish.residual_at(m, channel), output_at(g, m, channel));
}

}  // namespace

int add_splits(const GemmArgs& g, Stream stream) {
  const bool vectors = g.vectors && !g.planes;
  const int64_t each = g.layout.n / (vectors ? 4 : 1);
  const Grid grid{ceil_div(g.m * each, kSplitThreads), 1, g.layout.groups};
  const Divisor line(g.planes ? g.m : each);
  if (vectors) return launch<add_splits_kernel<Lanes<4>>>(grid, kSplitThreads, 0, stream, g, line);
  return launch<add_splits_kernel<Lanes<1>>>(grid, kSplitThreads, 0, stream, g, line);
}

}  // namespace qk::cuda
