#include "attention.h"

#include <algorithm>

#include "dispatch.h"

namespace qk {
namespace {

constexpr int64_t kWorkPerThread = 1 << 18;  // multiply-adds below which another thread costs more than it gives

int64_t row_blocks(const AttentionProblem& p) { return ceil_div(p.q_tokens, HeadMemory::kRows); }

int attention_workers(const AttentionProblem& p, int threads) {
  const int64_t tasks = p.batch * p.heads * row_blocks(p), work = p.batch * p.heads * p.q_tokens * p.k_tokens * (p.width + p.v_width);
  return int(std::min<int64_t>(workers_for(work, kWorkPerThread, threads), std::max<int64_t>(tasks, 1)));
}

}  // namespace

int64_t attention_workspace(const AttentionProblem& p, int threads) {
  Workspace w(nullptr);
  for (int i = attention_workers(p, threads); i > 0; --i) HeadMemory(p, w);
  return w.used();
}

// A task is some rows of a head; a worker packs the keys and values that it comes to once, whichever heads share them.
void attention(const AttentionProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const Kernels& kernels = kernels_of(isa);
  const int64_t blocks = row_blocks(p), tasks = p.batch * p.heads * blocks, sharing = p.heads / p.kv_heads;
  const int workers = attention_workers(p, parallel.threads);
  Workspace one(nullptr);
  HeadMemory(p, one);
  parallel(workers, [&](int64_t worker) {
    Workspace own(static_cast<char*>(workspace) + worker * one.used());
    const HeadMemory memory(p, own);
    const Share mine = share(tasks, workers, worker);
    int64_t packed = -1;
    for (int64_t task = mine.begin; task < mine.end; ++task) {
      const int64_t head = task / blocks, kv_head = head / sharing, begin = p.q_tokens * (task % blocks) / blocks;
      if (kv_head != packed) kernels.pack_head(p, kv_head / p.kv_heads, kv_head % p.kv_heads, memory);
      packed = kv_head;
      const int64_t end = p.q_tokens * (task % blocks + 1) / blocks;
      kernels.attend(p, head / p.heads, head % p.heads, begin, end - begin, memory);
    }
  });
}

}  // namespace qk
