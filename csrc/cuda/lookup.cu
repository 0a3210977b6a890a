#include "lookup.h"

#include "lanes.cuh"
#include "launch.cuh"
#include "../core/layout.h"

namespace qk::cuda {
namespace {

constexpr int kLookupThreads = 256;

// A thread takes W neighbours; the table, two lines of the L1 cache, stays there.
template <int W>
QK_KERNEL(kLookupThreads) lookup_kernel(QK_PARAMETER LookupProblem p) {
  const int8_t* const table = p.table + 128;
  const int64_t at = (block_x() * kLookupThreads + thread_index()) * W;
  if (at + W <= p.count) {
    auto values = global_load<Pack<int8_t, W>>(p.x + at);
    QK_UNROLL for (int i = 0; i < W; ++i) values.v[i] = global_load<int8_t>(table + values.v[i]);
    return global_store(p.y + at, values);
  }
  for (int64_t i = at; i < p.count; ++i) global_store(p.y + i, global_load<int8_t>(table + global_load<int8_t>(p.x + i)));
}

template <int W>
int run(const LookupProblem& p, Stream stream) {
  return launch<lookup_kernel<W>>({ceil_div(p.count, kLookupThreads * W)}, kLookupThreads, 0, stream, p);
}

}  // namespace

int lookup(const LookupProblem& p, Stream stream) {
  const bool wide = (reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.y)) % 16 == 0;
  return wide ? run<16>(p, stream) : run<1>(p, stream);
}

}  // namespace qk::cuda
