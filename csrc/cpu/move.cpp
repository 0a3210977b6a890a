#include "move.h"

#include <algorithm>
#include <cstring>
#include <utility>

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

// Sixteen bytes of T.
template <class T>
struct Lanes {
  static constexpr int64_t kCount = 16 / sizeof(T);
  typedef T Vector __attribute__((vector_size(16)));

  template <size_t... I>
  static Vector low(Vector a, Vector b, std::index_sequence<I...>) { return __builtin_shufflevector(a, b, int(I / 2 + I % 2 * kCount)...); }
  template <size_t... I>
  static Vector high(Vector a, Vector b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, int(kCount / 2 + I / 2 + I % 2 * kCount)...);
  }

  // kCount lines of x, each as long, to as many lines of y: what was a line is a lane. Interleaving the first half with the second
  // turns the square a step, log2(kCount) times.
  static void transpose(const char* x, int64_t x_line, char* y, int64_t y_line) {
    constexpr auto lanes = std::make_index_sequence<size_t(kCount)>();
    Vector v[kCount], turned[kCount];
    for (int64_t i = 0; i < kCount; ++i) std::memcpy(&v[i], x + i * x_line, 16);
    for (int64_t round = 1; round < kCount; round *= 2) {
      for (int64_t i = 0; i < kCount / 2; ++i) {
        turned[2 * i] = low(v[i], v[i + kCount / 2], lanes);
        turned[2 * i + 1] = high(v[i], v[i + kCount / 2], lanes);
      }
      std::copy_n(turned, kCount, v);
    }
    for (int64_t i = 0; i < kCount; ++i) std::memcpy(y + i * y_line, &v[i], 16);
  }
};

// T wherever it lies, whatever it is.
template <class T>
struct Loose {
  typedef T Value __attribute__((may_alias, aligned(1)));
};

// Two lines of x become one, of their values in turn.
template <class T>
void interleave(const char* first, const char* second, int64_t count, char* y) {
  using Value = typename Loose<T>::Value;
  const Value *__restrict a = reinterpret_cast<const Value*>(first), *__restrict b = reinterpret_cast<const Value*>(second);
  Value* __restrict to = reinterpret_cast<Value*>(y);
  for (int64_t i = 0; i < count; ++i) to[2 * i] = a[i], to[2 * i + 1] = b[i];
}

// And back.
template <class T>
void part(const char* x, int64_t count, char* first, char* second) {
  using Value = typename Loose<T>::Value;
  const Value* __restrict from = reinterpret_cast<const Value*>(x);
  Value *__restrict a = reinterpret_cast<Value*>(first), *__restrict b = reinterpret_cast<Value*>(second);
  for (int64_t i = 0; i < count; ++i) a[i] = from[2 * i], b[i] = from[2 * i + 1];
}

// The same of numbers; where rows lie side by side in x and columns in y, squares are turned in registers.
template <class T>
void move_numbers(const MoveProblem::Dim& rows, const MoveProblem::Dim& columns, int64_t item, const char* x, char* y) {
  constexpr int64_t kLanes = Lanes<T>::kCount, kItem = sizeof(T);
  if (rows.x != kItem || columns.y != kItem) return move_block<kItem>(rows, columns, item, x, y);
  if (columns.count == 2 && rows.y == 2 * kItem) return interleave<T>(x, x + columns.x, rows.count, y);
  if (rows.count == 2 && columns.x == 2 * kItem) return part<T>(x, columns.count, y, y + rows.y);
  const int64_t whole_rows = rows.count / kLanes * kLanes, whole_columns = columns.count / kLanes * kLanes;
  for (int64_t r = 0; r < whole_rows; r += kLanes)
    for (int64_t c = 0; c < whole_columns; c += kLanes)
      Lanes<T>::transpose(x + r * kItem + c * columns.x, columns.x, y + r * rows.y + c * kItem, rows.y);
  const auto rest = [&](int64_t r, int64_t c, int64_t height, int64_t width) {
    move_block<kItem>({height, rows.x, rows.y}, {width, columns.x, columns.y}, item, x + r * rows.x + c * columns.x, y + r * rows.y + c * columns.y);
  };
  rest(0, whole_columns, whole_rows, columns.count - whole_columns);
  rest(whole_rows, 0, rows.count - whole_rows, columns.count);
}

using MoveBlock = void (*)(const MoveProblem::Dim& rows, const MoveProblem::Dim& columns, int64_t item, const char* x, char* y);

MoveBlock block_of(int64_t item) {
  switch (item) {
    case 1: return move_numbers<uint8_t>;
    case 2: return move_numbers<uint16_t>;
    case 4: return move_numbers<uint32_t>;
    case 8: return move_numbers<uint64_t>;
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

// A place in x and in y that walks through all dims, the last fastest.
struct Place {
  const MoveProblem& p;
  int64_t index[MoveProblem::kMost];
  const char* x;
  char* y;

  Place(const MoveProblem& p, int64_t first) : p(p), x(static_cast<const char*>(p.x)), y(static_cast<char*>(p.y)) {
    for (int i = p.count; i-- > 0; first /= p.dims[i].count) {
      index[i] = first % p.dims[i].count;
      x += index[i] * p.dims[i].x, y += index[i] * p.dims[i].y;
    }
  }
  void next() {
    for (int i = p.count; i-- > 0;) {
      x += p.dims[i].x, y += p.dims[i].y;
      if (++index[i] < p.dims[i].count) return;
      x -= p.dims[i].x * index[i], y -= p.dims[i].y * index[i];
      index[i] = 0;
    }
  }
};

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
  const int64_t most = workers > 1 ? 64 : rows.count;  // rows of a block
  p.dims[p.count++] = {ceil_div(rows.count, most), most * rows.x, most * rows.y};
  int64_t blocks = 1;
  for (int i = 0; i < p.count; ++i) blocks *= p.dims[i].count;
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(blocks, workers, worker);
    Place at(p, mine.begin);
    for (int64_t i = mine.begin; i < mine.end; ++i, at.next()) {
      const int64_t left = rows.count - at.index[p.count - 1] * most;
      move_one({std::min(most, left), rows.x, rows.y}, columns, p.item, at.x, at.y);
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
      const int64_t row = p.ids.row(i, p.rows);  // they were checked, but are the caller's memory
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

void gather(const GatherProblem& p) {
  for (int64_t i = 0; i < p.count; ++i)
    std::memcpy(static_cast<char*>(p.y) + i * p.bytes, static_cast<const char*>(p.x) + (i * p.rows + p.ids.row(i, p.rows)) * p.bytes, size_t(p.bytes));
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
