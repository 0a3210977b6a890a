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

// Leaves out dims of one index, makes one of two that follow each other in x and in y, and whole elements of runs of bytes.
void simplify(MoveProblem& p) {
  int kept = 0;
  for (int i = 0; i < p.count; ++i) {
    MoveProblem::Dim& last = p.dims[std::max(kept - 1, 0)];
    const MoveProblem::Dim next = p.dims[i];
    if (next.count == 1) continue;
    if (kept && last.x == next.x * next.count && last.y == next.y * next.count) last = {last.count * next.count, next.x, next.y};
    else p.dims[kept++] = next;
  }
  p.count = kept;
  if (kept && p.dims[kept - 1].x == p.item && p.dims[kept - 1].y == p.item) p.item *= p.dims[--p.count].count;
}

// Rows by columns of elements; kItem is their size, 0: `item` is. Where the next row is nearer in x than the next column, lines of
// y are filled side by side, as many as stay in L1.
template <int64_t kItem>
void move_block(const MoveProblem::Dim& rows, const MoveProblem::Dim& columns, int64_t item, const char* x, char* y) {
  const int64_t tile = rows.x < columns.x ? 16 : 1;
  for (int64_t r0 = 0; r0 < rows.count; r0 += tile) {
    const int64_t end = std::min(r0 + tile, rows.count);
    for (int64_t c = 0; c < columns.count; ++c)
      for (int64_t r = r0; r < end; ++r)
        std::memcpy(y + r * rows.y + c * columns.y, x + r * rows.x + c * columns.x, size_t(kItem ? kItem : item));
  }
}

using MoveBlock = void (*)(const MoveProblem::Dim& rows, const MoveProblem::Dim& columns, int64_t item, const char* x, char* y);

MoveBlock block_of(int64_t item) {
  switch (item) {
    case 1: return move_block<1>;
    case 2: return move_block<2>;
    case 4: return move_block<4>;
    case 8: return move_block<8>;
    case 16: return move_block<16>;
    default: return move_block<0>;
  }
}

// Takes the dim out of p that is nearest in x, or the last.
MoveProblem::Dim take_rows(MoveProblem& p) {
  int nearest = p.count - 1;
  for (int i = 0; i < p.count; ++i)
    if (p.dims[i].x < p.dims[nearest].x) nearest = i;
  const MoveProblem::Dim rows = p.dims[nearest];
  std::copy(p.dims + nearest + 1, p.dims + p.count, p.dims + nearest);
  --p.count;
  return rows;
}

void move_bytes(const void* x, void* y, int64_t bytes, const Parallel& parallel) {
  const int workers = workers_for(bytes, kBytesPerThread, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(bytes, workers, worker);
    std::memcpy(static_cast<char*>(y) + mine.begin, static_cast<const char*>(x) + mine.begin, size_t(mine.end - mine.begin));
  });
}

int embedding_workers(const EmbeddingProblem& p, int threads) { return workers_for(p.count * p.c * 4, kBytesPerThread, threads); }

}  // namespace

void move(MoveProblem p, const Parallel& parallel) {
  int64_t elements = 1;
  for (int i = 0; i < p.count; ++i) elements *= p.dims[i].count;
  if (elements == 0) return;
  const int workers = workers_for(elements * p.item, kBytesPerThread, parallel.threads);
  simplify(p);
  if (p.count == 0) return move_bytes(p.x, p.y, p.item, parallel);
  const MoveProblem::Dim columns = p.dims[--p.count], rows = p.count ? take_rows(p) : MoveProblem::Dim{1, 0, 0};
  const MoveBlock move_one = block_of(p.item);
  int64_t blocks = workers > 1 ? ceil_div(rows.count, int64_t(64)) : 1;  // of rows
  int64_t tasks = blocks;
  for (int i = 0; i < p.count; ++i) tasks *= p.dims[i].count;
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(tasks, workers, worker);
    for (int64_t task = mine.begin; task < mine.end; ++task) {
      const Share of_rows = share(rows.count, blocks, task % blocks);
      const char* x = static_cast<const char*>(p.x) + of_rows.begin * rows.x;
      char* y = static_cast<char*>(p.y) + of_rows.begin * rows.y;
      int64_t index = task / blocks;
      for (int i = p.count; i-- > 0; index /= p.dims[i].count) {
        x += index % p.dims[i].count * p.dims[i].x;
        y += index % p.dims[i].count * p.dims[i].y;
      }
      move_one({of_rows.end - of_rows.begin, rows.x, rows.y}, columns, p.item, x, y);
    }
  });
}

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

int64_t embedding_workspace(const EmbeddingProblem& p, int threads) { return embedding_workers(p, threads) * round_up(p.c * 4, 64); }

void embedding(const EmbeddingProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const Kernels& kernels = kernels_of(isa);
  const Epilogue& e = p.epilogue;
  const bool quantized = e.out_type == DType::s8;
  const int workers = embedding_workers(p, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    float* own = reinterpret_cast<float*>(static_cast<char*>(workspace) + worker * round_up(p.c * 4, 64));
    const Share mine = share(p.count, workers, worker);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t row = std::clamp<int64_t>(p.ids[i], 0, p.rows - 1);  // they were checked, but are the caller's memory
      char* y = static_cast<char*>(p.y) + i * p.c * size_of(e.out_type);
      const float* values = static_cast<const float*>(p.table) + (p.scale ? 0 : row * p.c);
      if (p.scale) {
        float* to = quantized ? own : reinterpret_cast<float*>(y);
        kernels.dequantize(static_cast<const int8_t*>(p.table) + row * p.c, p.c, p.scale[row], 0, DType::f32, to);
        values = to;
      }
      if (quantized) kernels.quantize(values, DType::f32, p.c, e.out_inv_scale, e.out_zero, e.out_mask != 0, reinterpret_cast<int8_t*>(y));
      else if (!p.scale) std::memcpy(y, values, size_t(p.c * 4));
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
