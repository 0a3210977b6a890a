#include "move.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"

namespace qk {
namespace {

constexpr int64_t kBytesPerThread = 1 << 17;

template <class T>
void planar_image(const PlanarProblem& p, int64_t image) {
  const T* x = static_cast<const T*>(p.x) + image * p.pixels * p.c;
  T* y = static_cast<T*>(p.y) + image * p.pixels * p.c;
  constexpr int64_t kTile = 16;  // of channels: their lines of y stay in L1
  for (int64_t c0 = 0; c0 < p.c; c0 += kTile) {
    const int64_t channels = std::min(kTile, p.c - c0);
    for (int64_t i = 0; i < p.pixels; ++i)
      for (int64_t c = 0; c < channels; ++c) y[(c0 + c) * p.pixels + i] = x[i * p.c + c0 + c];
  }
}

}  // namespace

void copy(const CopyProblem& p, const Parallel& parallel) {
  const int64_t item = size_of(p.type), row = p.ow * p.oc * item, rows = p.batch * p.oh;
  const int64_t inner_h = p.oh - p.pad_top - p.pad_bottom, inner_w = p.ow - p.pad_left - p.pad_right;
  const int workers = workers_for(rows * row, kBytesPerThread, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(rows, workers, worker);
    for (int64_t r = mine.begin; r < mine.end; ++r) {
      const int64_t image = r / p.oh, i = r % p.oh - p.pad_top;
      char* y = static_cast<char*>(p.y) + r * row;
      if (p.fill) std::memset(y, p.type == DType::s8 ? p.fill_value : 0, size_t(row));
      if (i < 0 || i >= inner_h) continue;
      const char* x = static_cast<const char*>(p.x) + (image * p.h + i * p.stride_h) * p.w * p.c * item;
      y += (p.pad_left * p.oc + p.channel) * item;
      for (int64_t j = 0; j < inner_w; ++j)
        std::memcpy(y + j * p.oc * item, x + j * p.stride_w * p.c * item, size_t(p.c * item));
    }
  });
}

void lookup(const LookupProblem& p, Isa isa, const Parallel& parallel) {
  int8_t table[256];  // by the byte as it is stored, and as it will be
  for (int i = 0; i < 256; ++i) table[uint8_t(i - 128) ^ uint8_t(p.mask)] = p.table[i] ^ p.mask;
  const int workers = workers_for(p.count, kBytesPerThread, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.count, workers, worker);
    kernels_of(isa).lookup(table, mine.end - mine.begin, p.x + mine.begin, p.y + mine.begin);
  });
}

void to_planar(const PlanarProblem& p, const Parallel& parallel) {
  if (p.pixels == 1 || p.c == 1) {
    std::memcpy(p.y, p.x, size_t(p.batch * p.pixels * p.c * size_of(p.type)));
    return;
  }
  const int workers = int(std::min<int64_t>(p.batch, workers_for(p.batch * p.pixels * p.c * size_of(p.type), kBytesPerThread, parallel.threads)));
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.batch, workers, worker);
    for (int64_t image = mine.begin; image < mine.end; ++image)
      p.type == DType::s8 ? planar_image<int8_t>(p, image) : planar_image<float>(p, image);
  });
}

}  // namespace qk
