#include "norms.h"

#include <algorithm>

#include "dispatch.h"

namespace qk {
namespace {

constexpr int64_t kRowsAtOnce = 4;     // of layer normalization
constexpr int64_t kStatistics = 3;     // a channel, of group normalization

// Some floats of memory for each worker.
int64_t bytes_of(int64_t floats) { return round_up(floats * 4, 64); }
float* own(void* workspace, int64_t floats, int64_t worker) {
  return reinterpret_cast<float*>(static_cast<char*>(workspace) + bytes_of(floats) * worker);
}

int row_workers(int64_t rows, int64_t c, int threads) {
  return int(std::min<int64_t>(workers_for(rows * c, kElementsPerThread, threads), std::max<int64_t>(rows, 1)));
}

int64_t layer_norm_floats(const LayerNormProblem& p) { return p.x.type == DType::f32 ? 0 : kRowsAtOnce * p.c; }
int64_t group_norm_floats(const GroupNormProblem& p) { return kStatistics * round_up(p.c, 16); }

int group_norm_workers(const GroupNormProblem& p, int threads) {
  const int64_t groups = p.batch * p.groups;
  return int(std::min<int64_t>(workers_for(p.batch * p.h * p.w * p.c, kElementsPerThread, threads), std::max<int64_t>(groups, 1)));
}

}  // namespace

int64_t layer_norm_workspace(const LayerNormProblem& p, int threads) {
  return bytes_of(layer_norm_floats(p)) * row_workers(p.rows, p.c, threads);
}

void layer_norm(const LayerNormProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const int workers = row_workers(p.rows, p.c, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.rows, workers, worker);
    kernels_of(isa).layer_norm(p, mine.begin, mine.end, own(workspace, layer_norm_floats(p), worker));
  });
}

int64_t group_norm_workspace(const GroupNormProblem& p, int threads) {
  return bytes_of(group_norm_floats(p)) * group_norm_workers(p, threads);
}

// A worker takes some groups of some images, those of an image together.
void group_norm(const GroupNormProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const int workers = group_norm_workers(p, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.batch * p.groups, workers, worker);
    for (int64_t g = mine.begin, end; g < mine.end; g = end) {
      const int64_t image = g / p.groups;
      end = std::min(mine.end, (image + 1) * p.groups);
      kernels_of(isa).group_norm(p, image, g - image * p.groups, end - image * p.groups, own(workspace, group_norm_floats(p), worker));
    }
  });
}

int64_t softmax_workspace(const SoftmaxProblem& p, int threads) { return bytes_of(round_up(p.c, 16)) * row_workers(p.rows, p.c, threads); }

void softmax(const SoftmaxProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const int workers = row_workers(p.rows, p.c, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.rows, workers, worker);
    kernels_of(isa).softmax(p, mine.begin, mine.end, own(workspace, round_up(p.c, 16), worker));
  });
}

}  // namespace qk
