#include "gemm_plan.h"

#include <algorithm>

#include "channels.h"
#include "parallel.h"

namespace qk {
namespace {

constexpr int64_t kHalfL1 = 24 * 1024;        // of weights; and of x and C beside them
constexpr int64_t kFewRows = 48;              // a worker, up to which they share the rows and split the channels

void plan_memory(const Epilogue& e, int64_t staged_item, GemmPlan& plan) {
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

}  // namespace

GemmPlan plan_gemm(const RowParts& rows, const PackedLayout& layout, const Kernels& kernels, int threads, const Epilogue& e,
                   int64_t staged_item) {
  GemmPlan plan;
  plan.kernels = &kernels;
  plan.layout = layout;
  plan.parts = rows.parts;
  plan.part_rows = rows.part_rows;
  const int64_t m = rows.parts * rows.part_rows, work = m * layout.groups * layout.n * layout.k;
  plan.workers = int(std::clamp<int64_t>(ceil_div(work, kProductsPerThread), 1, std::clamp(threads, 1, kMaxThreads)));
  plan.lda = layout.k_padded();
  if (plan.lda % 1024 == 0) plan.lda += 64;  // rows a power of two apart would share few cache sets
  // Blocks are as few as fit, all alike, and in a multiple of the workers where one more or less would tell. Few rows are
  // not split: every worker would read all weights.
  const int64_t units = ceil_div(rows.part_rows, rows.unit), sources = std::max<int64_t>(rows.parts * layout.groups, 1);
  const bool weights_stay = layout.group_bytes() <= kHalfL1;  // in L1, and so can a few rows of x and C
  const int64_t row_bytes = std::max<int64_t>(1, weights_stay ? rows.x_bytes + rows.c_bytes : rows.x_bytes);
  const int64_t fit = std::max<int64_t>(1, (weights_stay ? kHalfL1 : kernels.x_bytes) / (row_bytes * rows.unit));
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

}  // namespace qk
