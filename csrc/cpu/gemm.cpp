#include "gemm.h"

#include "../core/epilogue.h"
#include "dispatch.h"
#include "gemm_blocks.h"

namespace qk {
namespace {

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

GemmPlan plan_linear(const GemmProblem& p, Isa isa, int threads) {
  const PackedLayout layout{1, p.n, p.k};
  const Kernels& kernels = kernels_for(isa, p.m);
  const RowParts rows{1, p.m, kernels.piece_rows, layout.k_padded(), p.n * size_of(p.epilogue.out_type)};
  return plan_gemm(rows, layout, kernels, threads, p.epilogue, 0);
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

constexpr int64_t kFloatBytes = 256 * 1024;  // of packed rows: a part of L2 that leaves room for weights and C

struct WeightOnlyPlan {
  int64_t block_rows, block_cols, row_blocks, col_blocks, lda;
  int workers;
};

WeightOnlyPlan plan_weight_only(const WeightOnlyProblem& p, int threads) {
  WeightOnlyPlan plan;
  plan.lda = round_up(p.k, 16);
  plan.workers = int(std::clamp<int64_t>(ceil_div(p.m * p.n * p.k, kProductsPerThread), 1, std::clamp(threads, 1, kMaxThreads)));
  plan.block_rows = std::clamp<int64_t>(kFloatBytes / (plan.lda * 4) / 4 * 4, 4, round_up(std::max<int64_t>(p.m, 1), 4));
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
