#include "attention.h"

#include <algorithm>

#include "dispatch.h"

namespace qk {
namespace {

constexpr int64_t kWorkPerThread = 1 << 18;  // multiply-adds below which another thread costs more than it gives

// A task is some rows of a head; a worker packs the keys and values that it comes to once, whichever heads share them.
// Memory: what a worker keeps; pack(image, kv_head, memory); attend(image, head, begin, rows, memory).
template <class Memory, class Pack, class Attend>
void for_heads(const AttentionProblem& p, int workers, const Parallel& parallel, void* workspace, Pack pack, Attend attend) {
  const int64_t blocks = ceil_div(p.q_tokens, Memory::kRows), tasks = p.batch * p.heads * blocks, sharing = p.heads / p.kv_heads;
  Workspace one(nullptr);
  Memory(p, one);
  parallel(workers, [&](int64_t worker) {
    Workspace own(static_cast<char*>(workspace) + worker * one.used());
    const Memory memory(p, own);
    const Share mine = share(tasks, workers, worker);
    int64_t packed = -1;
    for (int64_t task = mine.begin; task < mine.end; ++task) {
      const int64_t head = task / blocks, kv_head = head / sharing, begin = p.q_tokens * (task % blocks) / blocks;
      if (kv_head != packed) pack(kv_head / p.kv_heads, kv_head % p.kv_heads, memory);
      packed = kv_head;
      const int64_t end = p.q_tokens * (task % blocks + 1) / blocks;
      attend(head / p.heads, head % p.heads, begin, end - begin, memory);
    }
  });
}

int64_t rows_of(const AttentionProblem& p) { return p.int8_products ? HeadBytes::kRows : HeadMemory::kRows; }

int workers_of(const AttentionProblem& p, int threads) {
  const int64_t tasks = p.batch * p.heads * ceil_div(p.q_tokens, rows_of(p));
  const int64_t work = p.batch * p.heads * p.q_tokens * p.k_tokens * (p.width + p.v_width);
  return int(std::min<int64_t>(workers_for(work, kWorkPerThread, threads), std::max<int64_t>(tasks, 1)));
}

// c [rows][columns] = a [rows][depth] times packed b, with the scales of rows and columns; `bias` is added.
struct Product {
  const int8_t *a, *b;
  int64_t step;                          // bytes between rows of a: the depth of b, padded
  const float* scale;
  const int32_t* sum;
  float* c;
  int64_t c_step, rows, columns, depth;
  const float* bias = nullptr;
  int64_t bias_step = 0;

  void run(const Kernels& kernels, const HeadBytes& m) const {
    Epilogue e;
    e.w_scale = scale, e.w_sum = sum;
    e.residual = bias, e.residual_stride = bias_step;
    std::fill(m.row_offset, m.row_offset + rows, -kernels.x_mask);
    GemmBlock g{};
    g.a = a, g.lda = step;
    g.lines = g.piece_rows = g.piece_columns = 1;
    g.k4 = ceil_div(std::max<int64_t>(depth, 1), 4);
    g.b = b, g.panel_bytes = kPanel * step;
    g.rows = rows, g.cols = columns;
    g.row_scale = m.row_scale, g.row_offset = m.row_offset;
    g.c = c, g.c_stride = c_step;
    g.epilogue = &e;
    kernels.gemm(g);
  }
};

void attend_s8(const AttentionProblem& p, Isa isa, int64_t image, int64_t head, int64_t begin, int64_t rows, const HeadBytes& m) {
  const Kernels &scores = kernels_for(isa, rows), &sums = kernels_for(isa, 2 * rows);
  const Product product{m.q, m.keys, m.q_step, m.key_scale, m.key_sum, m.scores, m.score_step, rows, p.k_tokens, p.width,
                        p.bias_of(image, head, begin), p.bias_strides[2]};
  scores.queries_s8(p, image, head, begin, rows, scores.x_mask, m);
  product.run(scores, m);
  scores.weigh_s8(p, begin, rows, sums.x_mask, m);
  Product{m.weights, m.values, m.weight_step, m.value_scale, m.value_sum, m.sums, m.sum_step, 2 * rows, p.v_width, p.k_tokens}.run(sums, m);
  scores.store_s8(p, image, head, begin, rows, m);
}

}  // namespace

int64_t attention_workspace(const AttentionProblem& p, int threads) {
  Workspace w(nullptr);
  for (int i = workers_of(p, threads); i > 0; --i) {
    if (p.int8_products) HeadBytes(p, w);
    else HeadMemory(p, w);
  }
  return w.used();
}

void attention(const AttentionProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const Kernels& kernels = kernels_of(isa);
  const int workers = workers_of(p, parallel.threads);
  if (p.int8_products)
    for_heads<HeadBytes>(
        p, workers, parallel, workspace, [&](int64_t image, int64_t kv_head, const HeadBytes& m) { kernels.pack_head_s8(p, image, kv_head, m); },
        [&](int64_t image, int64_t head, int64_t begin, int64_t rows, const HeadBytes& m) { attend_s8(p, isa, image, head, begin, rows, m); });
  else
    for_heads<HeadMemory>(
        p, workers, parallel, workspace, [&](int64_t image, int64_t kv_head, const HeadMemory& m) { kernels.pack_head(p, image, kv_head, m); },
        [&](int64_t image, int64_t head, int64_t begin, int64_t rows, const HeadMemory& m) { kernels.attend(p, image, head, begin, rows, m); });
}

}  // namespace qk
