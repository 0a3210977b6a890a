#include "tokens.h"

#include <algorithm>

#include "dispatch.h"

namespace qk {
namespace {

constexpr int64_t kElementsPerThread = 1 << 15;
constexpr int64_t kWorkPerThread = 1 << 18;  // multiply-adds below which another thread costs more than it gives

int64_t row_blocks(const AttentionProblem& p) { return ceil_div(p.tokens, HeadMemory::kRows); }

int attention_workers(const AttentionProblem& p, int threads) {
  const int64_t tasks = p.batch * p.heads * row_blocks(p), work = 2 * p.batch * p.heads * p.tokens * p.tokens * p.width;
  return int(std::min<int64_t>(workers_for(work, kWorkPerThread, threads), std::max<int64_t>(tasks, 1)));
}

}  // namespace

void layer_norm(const LayerNormProblem& p, Isa isa, const Parallel& parallel) {
  const int workers = workers_for(p.rows * p.c, kElementsPerThread, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.rows, workers, worker);
    kernels_of(isa).layer_norm(p, mine.begin, mine.end);
  });
}

int64_t attention_workspace(const AttentionProblem& p, int threads) {
  Workspace w(nullptr);
  for (int i = attention_workers(p, threads); i > 0; --i) HeadMemory(p.tokens, p.width, w);
  return w.used();
}

// A task is some rows of a head; a worker packs each head it comes to once.
void attention(const AttentionProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const Kernels& kernels = kernels_of(isa);
  const int64_t blocks = row_blocks(p), tasks = p.batch * p.heads * blocks;
  const int workers = attention_workers(p, parallel.threads);
  Workspace one(nullptr);
  HeadMemory(p.tokens, p.width, one);
  parallel(workers, [&](int64_t worker) {
    Workspace own(static_cast<char*>(workspace) + worker * one.used());
    const HeadMemory memory(p.tokens, p.width, own);
    const Share mine = share(tasks, workers, worker);
    int64_t packed = -1;
    for (int64_t task = mine.begin; task < mine.end; ++task) {
      const int64_t head = task / blocks, begin = p.tokens * (task % blocks) / blocks;
      if (head != packed) kernels.pack_head(p, head / p.heads, head % p.heads, memory);
      packed = head;
      const int64_t end = p.tokens * (task % blocks + 1) / blocks;
      kernels.attend(p, head / p.heads, head % p.heads, begin, end - begin, memory);
    }
  });
}

}  // namespace qk
