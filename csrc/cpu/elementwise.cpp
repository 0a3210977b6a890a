#include "elementwise.h"

#include <algorithm>

#include "dispatch.h"

namespace qk {
namespace {

constexpr int64_t kTablePays = 1 << 11;  // elements, from which a table of all 256 results is quicker

// Axes of y that both operands cross alike are one.
struct Axes {
  int count = 0;
  int64_t size[4], a[4], b[4];

  explicit Axes(const BinaryProblem& p) {
    for (int i = 0; i < 4; ++i) {
      if (p.sizes[i] == 1) continue;
      const int64_t n = p.sizes[i], to_a = p.a_strides[i], to_b = p.b_strides[i];
      if (count && a[count - 1] == n * to_a && b[count - 1] == n * to_b) --count, size[count] *= n;
      else size[count] = n;
      a[count] = to_a, b[count] = to_b;
      ++count;
    }
    if (count == 0) size[0] = 1, a[0] = b[0] = 0, count = 1;
  }
};

constexpr int64_t kProducts = 1 << 12;  // of an affine step, that stay in L1 until they are summed

const void* moved(const Operand& o, int64_t elements) { return static_cast<const char*>(o.data) + elements * size_of(o.type); }

// Calls the kernel for rows [begin, end) of all but the last axis, or for columns [begin, end) of a single row.
void binary_share(const BinaryProblem& p, const Axes& axes, int64_t begin, int64_t end, void (*kernel)(const BinaryRows&)) {
  const int last = axes.count - 1;
  const int64_t item = size_of(p.epilogue.out_type);
  BinaryRows r{p.op, p.a, p.b, 0, 0, axes.a[last], axes.b[last], 1, axes.size[last], p.y, &p.epilogue};
  if (last == 0) {
    r.columns = end - begin;
    r.a.data = moved(p.a, begin * r.a_step), r.b.data = moved(p.b, begin * r.b_step), r.y = static_cast<char*>(p.y) + begin * item;
    return kernel(r);
  }
  const int64_t inner = axes.size[last - 1];
  r.a_row = axes.a[last - 1], r.b_row = axes.b[last - 1];
  for (int64_t row = begin; row < end; row += r.rows) {
    int64_t rest = row, a = 0, b = 0;
    for (int i = last - 1; i >= 0; rest /= axes.size[i], --i) a += rest % axes.size[i] * axes.a[i], b += rest % axes.size[i] * axes.b[i];
    r.rows = std::min(end - row, inner - row % inner);
    r.a.data = moved(p.a, a), r.b.data = moved(p.b, b), r.y = static_cast<char*>(p.y) + row * r.columns * item;
    kernel(r);
  }
}

}  // namespace

void unary(const UnaryProblem& p, Isa isa, const Parallel& parallel) {
  const Kernels& kernels = kernels_of(isa);
  const int workers = workers_for(p.count, kElementsPerThread, parallel.threads);
  int8_t every[256], table[256];
  const bool by_table = p.x.type == DType::s8 && p.epilogue.out_type == DType::s8 && p.count >= kTablePays;
  if (by_table) {
    for (int i = 0; i < 256; ++i) every[i] = int8_t(i);
    UnaryProblem all = p;
    all.count = 256, all.x.data = every, all.y = table;
    kernels.unary(all, 0, all.count);
  }
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.count, workers, worker);
    if (by_table)
      kernels.lookup(table, mine.end - mine.begin, static_cast<const int8_t*>(p.x.data) + mine.begin, static_cast<int8_t*>(p.y) + mine.begin);
    else
      kernels.unary(p, mine.begin, mine.end);
  });
}

void binary(const BinaryProblem& p, Isa isa, const Parallel& parallel) {
  const int64_t elements = p.sizes[0] * p.sizes[1] * p.sizes[2] * p.sizes[3];
  if (elements == 0) return;
  const Axes axes(p);
  const int64_t units = axes.count == 1 ? elements : elements / axes.size[axes.count - 1];
  const int workers = int(std::min<int64_t>(units, workers_for(elements, kElementsPerThread, parallel.threads)));
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(units, workers, worker);
    if (mine.begin < mine.end) binary_share(p, axes, mine.begin, mine.end, kernels_of(isa).binary);
  });
}

void affine(const AffineProblem& p, Isa isa, const Parallel& parallel) {
  if (p.rows == 0 || p.c == 0) return;
  const Kernels& kernels = kernels_of(isa);
  const int workers = int(std::min<int64_t>(p.rows, workers_for(p.rows * p.c, kElementsPerThread, parallel.threads)));
  const int64_t columns = std::min(p.c, kProducts), rows = std::max<int64_t>(1, kProducts / p.c);
  const Epilogue as_it_is;
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.rows, workers, worker);
    alignas(64) float products[kProducts];
    for (int64_t row = mine.begin; row < mine.end; row += rows) {
      for (int64_t c = 0; c < p.c; c += columns) {
        const int64_t at = row * p.c + c, many = std::min(rows, mine.end - row), wide = std::min(columns, p.c - c);
        Operand x = p.x;
        x.data = moved(p.x, at);
        kernels.binary({BinaryOp::mul, x, {p.weight + c}, p.c, 0, 1, 1, many, wide, products, &as_it_is});
        void* y = static_cast<char*>(p.y) + at * size_of(p.epilogue.out_type);
        kernels.binary({BinaryOp::add, {products}, {p.bias + c}, wide, 0, 1, 1, many, wide, y, &p.epilogue});
      }
    }
  });
}

}  // namespace qk
