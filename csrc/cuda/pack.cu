#include "pack.h"

#include "launch.cuh"
#include "lanes.cuh"
#include "../core/elements.h"

namespace qk::cuda {
namespace {

constexpr int kPackThreads = 128;

// K of element i of output channel o.
QK_DEVICE int64_t k_of(const WeightElements& w, int64_t o, int64_t i) { return w.k(o, i / (w.kh * w.kw), i / w.kw % w.kh, i % w.kw); }

// A block takes an output channel, whose sum it finds on the way.
QK_KERNEL(kPackThreads) pack_kernel(QK_PARAMETER WeightElements w, const int8_t* weight, int8_t* packed, uint32_t* bad) {
  const int64_t o = block_x(), group = w.group(o), channel = w.channel(o);
  int32_t sum = 0;
  for (int64_t i = thread_index(); i < w.each(); i += kPackThreads) {
    const int8_t v = global_load<int8_t>(weight + o * w.each() + i);
    global_store(packed + w.layout.offset(group, channel, k_of(w, o, i)), v);
    sum += v;
    if (v == -128) atomic_max(bad, 1);
  }
  char* const memory = shared_memory();
  for (int mask = 16; mask; mask /= 2) sum += int32_t(shuffle_xor(uint32_t(sum), mask));
  if (lane_index() == 0) shared_store(memory + warp_index() * 4, sum);
  block_sync();
  if (thread_index()) return;
  sum = 0;
  for (int i = 0; i < kPackThreads / 32; ++i) sum += shared_load<int32_t>(memory + i * 4);
  int8_t* const sums = packed + w.layout.values_bytes() + (group * w.layout.n_padded() + channel) * 4;
  global_store(sums, sum);
  if (o) return;
  const int64_t shape[] = {kLayoutVersion, w.layout.groups, w.layout.n, w.layout.k};
  for (int i = 0; i < 4; ++i) global_store(packed + w.layout.shape_offset() + i * 4, int32_t(shape[i]));
}

QK_KERNEL(kPackThreads) unpack_kernel(QK_PARAMETER WeightElements w, const int8_t* packed, int8_t* weight) {
  const int64_t o = block_x(), group = w.group(o), channel = w.channel(o);
  for (int64_t i = thread_index(); i < w.each(); i += kPackThreads)
    global_store(weight + o * w.each() + i, global_load<int8_t>(packed + w.layout.offset(group, channel, k_of(w, o, i))));
}

}  // namespace

int pack_weight(const int8_t* weight, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* packed,
                uint32_t* bad, Stream stream) {
  const WeightElements w(oc, c, kh, kw, groups);
  if (const int error = fill_zero(packed, w.layout.bytes(), stream)) return error;
  if (const int error = fill_zero(bad, 4, stream)) return error;
  return launch<pack_kernel>({oc}, kPackThreads, kPackThreads / 32 * 4, stream, w, weight, packed, bad);
}

int unpack_weight(const int8_t* packed, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* weight,
                  Stream stream) {
  return launch<unpack_kernel>({oc}, kPackThreads, 0, stream, WeightElements(oc, c, kh, kw, groups), packed, weight);
}

}  // namespace qk::cuda
