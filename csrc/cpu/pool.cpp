#include "pool.h"

#include <algorithm>

#include "dispatch.h"

namespace qk {

void pool2d(const Pool2dProblem& p, Isa isa, const Parallel& parallel) {
  constexpr int64_t kElementsPerThread = 1 << 15;
  const int64_t lines = p.batch * p.oh, elements = lines * p.ow * p.c * p.kh * p.kw;
  const int64_t workers = std::clamp<int64_t>(elements / kElementsPerThread, 1, std::max(parallel.threads, 1));
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(lines, workers, worker);
    for (int64_t line = mine.begin; line < mine.end; ++line) kernels_of(isa).pool(p, line / p.oh, line % p.oh);
  });
}

}  // namespace qk
