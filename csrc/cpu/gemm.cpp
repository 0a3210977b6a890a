#include "gemm.h"

#include "../core/epilogue.h"
#include "gemm_blocks.h"

namespace qk {
namespace {

constexpr int64_t kBlockBytes = 256 * 1024;   // of packed x: a part of L2 that leaves room for weights and C
constexpr int64_t kHalfL1 = 24 * 1024;        // of weights; and of x and C beside them
constexpr int64_t kWorkPerThread = 1 << 19;   // multiply-adds below which another thread costs more than it gives
constexpr int64_t kFewRows = 48;              // a worker, up to which they share the rows and split the channels

// int8 rows that lie as the kernel reads packed ones: nothing to turn, no padding of K or of the last rows, and not so far
// apart that they share few cache sets.
bool lie_packed(const GemmProblem& p, const Kernels& k) {
  return p.x_type == DType::s8 && p.x_mask == k.x_mask && p.k % k.piece == 0 && p.m % k.piece_rows == 0 &&
         p.x_stride % 1024 != 0;
}

// Rows [m0, m0 + rows) of x as int8 with their scale and offset; dynamic scales are found here, row by row.
void pack_rows(const GemmProblem& p, const GemmPlan& plan, const BlockPosition& at, const PackedRows& out, GemmBlock& block) {
  const Kernels& k = *plan.kernels;
  const Epilogue& e = p.epilogue;
  const bool in_place = lie_packed(p, k);
  for (int64_t r = 0; r < at.rows; ++r) {
    const char* x = static_cast<const char*>(p.x) + (at.m0 + r) * p.x_stride * size_of(p.x_type);
    ScaleZero sz;
    if (p.range == Range::given) {
      const int64_t i = (at.m0 + r) / e.rows_per_scale;
      sz = {e.x_scale[i], e.x_zero[i]};
    } else {
      const Extremes ends = k.extremes(x, p.x_type, p.k);
      sz = dynamic_scale(ends.lo, ends.hi, p.range == Range::dynamic_symmetric);
    }
    if (!in_place) k.quantize(x, p.x_type, p.k, 1.0f / sz.scale, sz.zero, p.x_mask != k.x_mask, out.a + r * plan.lda);
    out.scale[r] = sz.scale;
    out.offset[r] = sz.zero - k.x_mask;
  }
  read_packed(plan, out, at.rows, block);
  if (in_place) block.a = static_cast<const int8_t*>(p.x) + at.m0 * p.x_stride, block.lda = p.x_stride;
  block.one_scale = p.range == Range::given && at.m0 / e.rows_per_scale == (at.m0 + at.rows - 1) / e.rows_per_scale;
}

}  // namespace

static void plan_memory(const Epilogue& e, int64_t staged_item, GemmPlan& plan) {
  Workspace w(nullptr), own(nullptr);
  plan.panels = w.used();
  to_whole_panels(w, e, plan.layout);
  own.place(plan.block_rows * plan.lda);
  plan.row_scale = own.place(plan.block_rows * int64_t(sizeof(float)));
  plan.row_offset = own.place(plan.block_rows * int64_t(sizeof(int32_t)));
  plan.staged = own.place(plan.block_rows * plan.block_cols * staged_item);
  plan.rows_each = own.used();
  plan.rows = w.place(plan.workers * plan.rows_each);
  plan.bytes = w.used();
}

GemmPlan plan_gemm(const RowParts& rows, const PackedLayout& layout, const Kernels& kernels, int threads, const Epilogue& e,
                   int64_t staged_item) {
  GemmPlan plan;
  plan.kernels = &kernels;
  plan.layout = layout;
  plan.parts = rows.parts;
  plan.part_rows = rows.part_rows;
  const int64_t m = rows.parts * rows.part_rows, work = m * layout.groups * layout.n * layout.k;
  plan.workers = int(std::clamp<int64_t>(ceil_div(work, kWorkPerThread), 1, std::clamp(threads, 1, kMaxThreads)));
  plan.lda = layout.k_padded();
  if (plan.lda % 1024 == 0) plan.lda += 64;  // rows a power of two apart would share few cache sets
  // As few blocks as fit, all alike, and in a multiple of the workers where one more or less would tell. Few rows are
  // not split: every worker would read all weights.
  const int64_t units = ceil_div(rows.part_rows, rows.unit), sources = std::max<int64_t>(rows.parts * layout.groups, 1);
  const bool weights_stay = layout.group_bytes() <= kHalfL1;  // in L1, and so can a few rows of x and C
  const int64_t row_bytes = std::max<int64_t>(1, weights_stay ? rows.x_bytes + rows.c_bytes : rows.x_bytes);
  const int64_t fit = std::max<int64_t>(1, (weights_stay ? kHalfL1 : kBlockBytes) / (row_bytes * rows.unit));
  int64_t blocks = std::max<int64_t>(1, ceil_div(units, fit));
  if (m * layout.groups > kFewRows * plan.workers && sources * blocks % plan.workers && sources * blocks < 8 * plan.workers)
    blocks = ceil_div(round_up(sources * blocks, plan.workers), sources);
  plan.block_rows = std::max<int64_t>(1, ceil_div(units, blocks)) * rows.unit;
  plan.row_blocks = ceil_div(rows.part_rows, plan.block_rows);
  // Fewer row blocks than workers: split the channels too, so that every worker has a block.
  const int64_t splits = ceil_div(plan.workers, std::max<int64_t>(plan.row_blocks * sources, 1));
  plan.block_cols = round_up(ceil_div(layout.n, splits), 32);
  plan.col_blocks = ceil_div(layout.n, plan.block_cols);
  plan.workers = int(std::clamp<int64_t>(plan.tasks(), 1, plan.workers));
  plan_memory(e, staged_item, plan);
  return plan;
}

GemmPlan plan_packed_gemm(int64_t m, const PackedLayout& layout, const Kernels& kernels, int threads, const Epilogue& e) {
  const int64_t c_bytes = layout.n * size_of(e.out_type);
  return plan_gemm({1, m, kernels.piece_rows, layout.k_padded(), c_bytes}, layout, kernels, threads, e, 0);
}

GemmPlan plan_linear(const GemmProblem& p, Isa isa, int threads) {
  return plan_packed_gemm(p.m, {1, p.n, p.k}, kernels_for(isa, p.m), threads, p.epilogue);
}

void gemm(const GemmProblem& p, const GemmPlan& plan, const Parallel& parallel, void* workspace) {
  const int64_t item = size_of(p.epilogue.out_type);
  char* memory = static_cast<char*>(workspace);
  Workspace panels(memory + plan.panels);
  const Epilogue whole = to_whole_panels(panels, p.epilogue, plan.layout);
  for_blocks(plan, parallel, memory, [&](const BlockPosition& at, const PackedRows& rows, GemmBlock& block) {
    if (at.new_rows) pack_rows(p, plan, at, rows, block);
    multiply(plan, p.weight, whole, at, {static_cast<char*>(p.c) + (at.m0 * p.c_stride + at.n0) * item, p.c_stride}, block);
  });
}

namespace {

struct WeightOnlyPlan {
  int64_t block_rows, block_cols, row_blocks, col_blocks, lda;
  int workers;
};

WeightOnlyPlan plan_weight_only(const WeightOnlyProblem& p, int threads) {
  WeightOnlyPlan plan;
  plan.lda = round_up(p.k, 16);
  plan.workers = int(std::clamp<int64_t>(ceil_div(p.m * p.n * p.k, kWorkPerThread), 1, std::clamp(threads, 1, kMaxThreads)));
  plan.block_rows = std::clamp<int64_t>(kBlockBytes / (plan.lda * 4) / 4 * 4, 4, round_up(std::max<int64_t>(p.m, 1), 4));
  plan.row_blocks = ceil_div(p.m, plan.block_rows);
  plan.block_cols = std::max<int64_t>(kPanel, round_up(ceil_div(p.n, plan.workers), kPanel));
  plan.col_blocks = ceil_div(p.n, plan.block_cols);
  plan.workers = int(std::clamp<int64_t>(plan.row_blocks * plan.col_blocks, 1, plan.workers));
  return plan;
}

}  // namespace

int64_t weight_only_workspace(const WeightOnlyProblem& p, int threads) {
  const WeightOnlyPlan plan = plan_weight_only(p, threads);
  Workspace w(nullptr);
  to_whole_panels(w, p.epilogue, PackedLayout{1, p.n, p.k});
  for (int i = 0; i < plan.workers; ++i) w.take<float>(plan.block_rows * plan.lda);
  return w.used();
}

void weight_only(const WeightOnlyProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const WeightOnlyPlan plan = plan_weight_only(p, parallel.threads);
  const Kernels& kernels = kernels_of(isa);
  const PackedLayout layout{1, p.n, p.k};
  Workspace memory(workspace);
  const Epilogue epilogue = to_whole_panels(memory, p.epilogue, layout);
  float* rows_of_all = memory.take<float>(0);
  parallel(plan.workers, [&](int64_t worker) {
    float* a = rows_of_all + worker * round_up(plan.block_rows * plan.lda, 16);
    const Share tasks = share(plan.row_blocks * plan.col_blocks, plan.workers, worker);
    for (int64_t task = tasks.begin; task < tasks.end; ++task) {
      const int64_t m0 = task / plan.col_blocks * plan.block_rows, n0 = task % plan.col_blocks * plan.block_cols;
      const int64_t rows = std::min(plan.block_rows, p.m - m0);
      for (int64_t r = 0; r < rows; ++r) {
        kernels.to_f32(static_cast<const char*>(p.x) + (m0 + r) * p.x_stride * size_of(p.x_type), p.x_type, p.k,
                       a + r * plan.lda);
        std::fill(a + r * plan.lda + p.k, a + (r + 1) * plan.lda, 0.0f);
      }
      WeightOnlyBlock block;
      block.a = a;
      block.lda = plan.lda;
      block.b = layout.values(p.weight, 0) + n0 / kPanel * layout.panel_bytes();
      block.panel_bytes = layout.panel_bytes();
      block.k4 = ceil_div(p.k, 4);
      block.rows = rows;
      block.cols = std::min(plan.block_cols, p.n - n0);
      block.m0 = m0;
      block.n0 = n0;
      block.c = static_cast<char*>(p.c) + (m0 * p.c_stride + n0) * size_of(epilogue.out_type);
      block.c_stride = p.c_stride;
      block.epilogue = &epilogue;
      kernels.weight_only(block);
    }
  });
}

}  // namespace qk
