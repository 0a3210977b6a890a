#include "quantize.h"

#include <algorithm>

#include "../core/epilogue.h"
#include "../core/layout.h"
#include "dispatch.h"

namespace qk {
namespace {

int workers_of(int64_t rows, int64_t cols, int threads) {
  return int(std::min<int64_t>(workers_for(rows * cols, kElementsPerThread, threads), std::max<int64_t>(rows, 1)));
}

// One scale for `rows_per_scale` rows. Extremes are exact, so the order of the rows does not matter.
void find_scales(const QuantizeProblem& p, const Kernels& k, const Parallel& parallel) {
  const int64_t groups = ceil_div(p.rows, p.rows_per_scale);
  const int64_t workers = std::min<int64_t>(workers_of(p.rows, p.cols, parallel.threads), std::max<int64_t>(groups, 1));
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(groups, workers, worker);
    for (int64_t g = mine.begin; g < mine.end; ++g) {
      const int64_t first = g * p.rows_per_scale, rows = std::min(p.rows_per_scale, p.rows - first);
      const char* x = static_cast<const char*>(p.x) + first * p.cols * size_of(p.x_type);
      const Extremes ends = k.extremes(x, p.x_type, rows * p.cols);
      const ScaleZero sz = dynamic_scale(ends.lo, ends.hi, p.range == Range::dynamic_symmetric);
      p.scale[g] = sz.scale;
      p.zero[g] = sz.zero;
    }
  });
}

}  // namespace

void quantize(const QuantizeProblem& p, Isa isa, const Parallel& parallel) {
  const Kernels& k = kernels_of(isa);
  if (p.range != Range::given) find_scales(p, k, parallel);
  const int64_t workers = workers_of(p.rows, p.cols, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.rows, workers, worker);
    for (int64_t r = mine.begin; r < mine.end; ++r) {
      const char* x = static_cast<const char*>(p.x) + r * p.cols * size_of(p.x_type);
      const int64_t i = r / p.rows_per_scale;
      k.quantize(x, p.x_type, p.cols, 1.0f / p.scale[i], p.zero[i], false, p.q + r * p.cols);
    }
  });
}

void dequantize(const DequantizeProblem& p, Isa isa, const Parallel& parallel) {
  const Kernels& k = kernels_of(isa);
  const int64_t workers = workers_of(p.rows, p.cols, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.rows, workers, worker);
    for (int64_t r = mine.begin; r < mine.end; ++r) {
      const int64_t i = r / p.rows_per_scale;
      k.dequantize(p.q + r * p.cols, p.cols, p.scale[i], p.zero[i], p.y_type,
                   static_cast<char*>(p.y) + r * p.cols * size_of(p.y_type));
    }
  });
}

}  // namespace qk
