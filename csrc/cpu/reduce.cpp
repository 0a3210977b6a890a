#include "reduce.h"

#include <algorithm>
#include <cmath>

#include "dispatch.h"

namespace qk {
namespace {

constexpr int64_t kColumns = 256;  // taken together

// Columns of a task: whole rows of c where these are reduced too.
int64_t columns_of(const ReduceProblem& p) {
  if (!p.over_c) return std::min(kColumns, p.rows * p.c);
  return p.c * std::clamp<int64_t>(kColumns / p.c, 1, p.rows);
}

int64_t tasks_of(const ReduceProblem& p) { return p.outer * ceil_div(p.rows * p.c, columns_of(p)); }

int64_t bytes_of(const ReduceProblem& p) { return 2 * round_up(columns_of(p) * 4, 64); }

int workers_of(const ReduceProblem& p, int threads) {
  const int64_t elements = p.outer * p.count * p.rows * p.c;
  return int(std::min<int64_t>(workers_for(elements, kElementsPerThread, threads), std::max<int64_t>(tasks_of(p), 1)));
}

// Calls f(x of a column, column, outer) for each.
template <class F>
void along(const ScanProblem& p, const Parallel& parallel, F f) {
  const int workers = workers_for(p.outer * p.count * p.inner, kElementsPerThread, parallel.threads);
  const int64_t columns = p.outer * p.inner;
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(columns, workers, worker);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t outer = i / p.inner, column = i % p.inner;
      f(p.x + outer * p.count * p.inner + column, column, outer);
    }
  });
}

}  // namespace

int64_t reduce_workspace(const ReduceProblem& p, int threads) { return bytes_of(p) * workers_of(p, threads); }

void reduce(const ReduceProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const int64_t columns = p.rows * p.c, each = columns_of(p), blocks = ceil_div(columns, each), tasks = tasks_of(p);
  const int workers = workers_of(p, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(tasks, workers, worker);
    float* memory = reinterpret_cast<float*>(static_cast<char*>(workspace) + bytes_of(p) * worker);
    for (int64_t task = mine.begin; task < mine.end; ++task) {
      const int64_t begin = task % blocks * each;
      kernels_of(isa).reduce(p, task / blocks, begin, std::min(begin + each, columns), memory);
    }
  });
}

void cumsum(const ScanProblem& p, const Parallel& parallel) {
  along(p, parallel, [&](const float* x, int64_t column, int64_t outer) {
    float* y = p.y + outer * p.count * p.inner + column;
    float sum = 0;
    for (int64_t i = 0; i < p.count; ++i) y[i * p.inner] = sum += x[i * p.inner];
  });
}

void argmax(const ScanProblem& p, const Parallel& parallel) {
  along(p, parallel, [&](const float* x, int64_t column, int64_t outer) {
    int64_t best = 0;
    for (int64_t i = 1; i < p.count; ++i) {
      const float least = x[best * p.inner], v = x[i * p.inner];
      if (v > least || (std::isnan(v) && !std::isnan(least))) best = i;
    }
    p.y[outer * p.inner + column] = float(best);
  });
}

void average_pool(const AveragePoolProblem& p, Isa isa, const Parallel& parallel) {
  const int64_t lines = p.batch * p.oh, elements = p.adaptive ? p.batch * p.h * p.w * p.c : lines * p.ow * p.c * p.kh * p.kw;
  const int workers = int(std::min<int64_t>(workers_for(elements, kElementsPerThread, parallel.threads), std::max<int64_t>(lines, 1)));
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(lines, workers, worker);
    for (int64_t line = mine.begin; line < mine.end; ++line) kernels_of(isa).average(p, line / p.oh, line % p.oh);
  });
}

}  // namespace qk
