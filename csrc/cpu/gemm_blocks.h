// The one loop of every int8 GEMM here, linear or convolution: cut C into blocks, let the caller pack the rows of a
// block right before their use (or say where they lie), run the micro-kernel, let the caller take the block where it
// belongs.
#pragma once
#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "parallel.h"
#include "../core/workspace.h"

namespace qk {

// How C is cut into tasks. Every field follows from shapes, ISA and threads; results do not depend on it.
struct GemmPlan {
  const Kernels* kernels;
  PackedLayout layout;
  int64_t parts, part_rows;  // C has parts * part_rows rows; no block crosses from one part to the next
  int64_t block_rows;        // a multiple of the unit; their x fits a part of L2, or x, C and all weights fit L1
  int64_t block_cols;        // a multiple of 32
  int64_t row_blocks, col_blocks;  // of a part
  int64_t lda;               // bytes between packed rows
  int workers;

  int64_t tasks() const { return layout.groups * parts * row_blocks * col_blocks; }
};

// Rows in units that stay together, with the bytes of x that a row reads and of C that it writes.
struct RowParts {
  int64_t parts, part_rows, unit, x_bytes, c_bytes;
};

GemmPlan plan_gemm(const RowParts& rows, const PackedLayout& layout, const Kernels& kernels, int threads);
GemmPlan plan_packed_gemm(int64_t m, int64_t c_bytes, const PackedLayout& layout, const Kernels& kernels, int threads);

// Rows of x as the kernel reads them, with what turns their sums back into floats.
struct PackedRows {
  int8_t* a;               // [block_rows][lda]
  float* scale;            // [block_rows]
  int32_t* offset;         // [block_rows], zero point + Kernels::x_offset
  char* c;                 // [block_rows][block_cols] of output where the caller asked for a staging block
};

// Which part of C: rows [m0, m0 + rows) by columns [n0, n0 + cols) of one group.
struct BlockPosition {
  int64_t group, m0, rows, n0, cols;
};

// Elements between rows, and more of them after each `line` rows, the first of which is `column` of its line.
struct Destination {
  void* c;
  int64_t stride;
  int64_t gap = 0, line = 1, column = 0;
};

inline PackedRows take_packed_rows(Workspace& w, const GemmPlan& plan, int64_t staged_item) {
  return {w.take<int8_t>(plan.block_rows * plan.lda), w.take<float>(plan.block_rows), w.take<int32_t>(plan.block_rows),
          staged_item ? w.take<char>(plan.block_rows * plan.block_cols * staged_item) : nullptr};
}

// Per-channel values readable to whole panels from the start of every group: copied only where they are not.
template <class T>
const T* to_whole_panels(Workspace& w, const T* values, const PackedLayout& layout) {
  if (!values || layout.n % kPanel == 0) return values;
  const int64_t n = layout.groups * layout.n;
  T* copy = w.take<T>(n + kPanel);
  if (copy) {
    std::memcpy(copy, values, size_t(n) * sizeof(T));
    std::fill(copy + n, copy + n + kPanel, T(0));
  }
  return copy;
}

inline Epilogue to_whole_panels(Workspace& w, const Epilogue& e, const PackedLayout& layout) {
  Epilogue out = e;
  out.w_scale = to_whole_panels(w, e.w_scale, layout);
  out.bias = to_whole_panels(w, e.bias, layout);
  return out;
}

inline int64_t blocks_workspace(const GemmPlan& plan, const Epilogue& e, int64_t staged_item) {
  Workspace w(nullptr);
  to_whole_panels(w, e, plan.layout);
  for (int i = 0; i < plan.workers; ++i) take_packed_rows(w, plan, staged_item);
  return w.used();
}

inline Epilogue epilogue_of_group(const Epilogue& e, const PackedLayout& layout, const int8_t* weight, int64_t group) {
  Epilogue out = e;
  const int64_t first = group * layout.n;
  out.w_scale += first;
  if (out.bias) out.bias += first;
  if (out.residual) out.residual = static_cast<const char*>(out.residual) + first * size_of(e.residual_type);
  out.w_sum = layout.sums(weight, group);
  return out;
}

// The rows of x as a micro-kernel reads packed ones.
inline void read_packed(const GemmPlan& plan, const PackedRows& from, int64_t rows, GemmBlock& block) {
  block.a = from.a;
  block.lda = plan.lda;
  block.lines = block.piece_rows = block.piece_columns = 1;
  block.line_stride = block.piece_row_stride = block.piece_column_stride = 0;
  block.rows = rows;
  block.k4 = ceil_div(plan.layout.k, 4);
}

// pack(BlockPosition, PackedRows, GemmBlock) fills in the block's rows of x;
// where(BlockPosition, PackedRows) -> Destination, done(BlockPosition, PackedRows).
template <class Pack, class Where, class Done>
void gemm_blocks(const GemmPlan& plan, const int8_t* weight, const Epilogue& channel_epilogue, int64_t staged_item,
                 const Parallel& parallel, void* workspace, Pack pack, Where where, Done done) {
  Workspace memory(workspace);
  const Epilogue whole = to_whole_panels(memory, channel_epilogue, plan.layout);
  PackedRows rows_of[kMaxThreads];  // one a worker
  const int workers = std::min(plan.workers, kMaxThreads);
  for (int i = 0; i < workers; ++i) rows_of[i] = take_packed_rows(memory, plan, staged_item);
  parallel(workers, [&](int64_t worker) {
    const PackedRows& rows = rows_of[worker];
    const Share tasks = share(plan.tasks(), workers, worker);
    GemmBlock block;
    int64_t packed = -1;  // the (group, row block) that `block` reads
    for (int64_t task = tasks.begin; task < tasks.end; ++task) {
      const int64_t source = task / plan.col_blocks;
      BlockPosition at;
      at.group = source / (plan.parts * plan.row_blocks);
      const int64_t first = source % plan.row_blocks * plan.block_rows;
      at.m0 = source / plan.row_blocks % plan.parts * plan.part_rows + first;
      at.rows = std::min(plan.block_rows, plan.part_rows - first);
      at.n0 = task % plan.col_blocks * plan.block_cols;
      at.cols = std::min(plan.block_cols, plan.layout.n - at.n0);
      if (source != packed) pack(at, rows, block);
      packed = source;
      const Epilogue epilogue = epilogue_of_group(whole, plan.layout, weight, at.group);
      const Destination to = where(at, rows);
      block.panel_bytes = plan.layout.panel_bytes();
      block.b = plan.layout.values(weight, at.group) + at.n0 / kPanel * block.panel_bytes;
      block.cols = at.cols;
      block.m0 = at.m0;
      block.n0 = at.n0;
      block.row_scale = rows.scale;
      block.row_offset = rows.offset;
      block.c = to.c;
      block.c_stride = to.stride;
      block.c_gap = to.gap;
      block.c_line = to.line;
      block.c_column = to.column;
      block.epilogue = &epilogue;
      plan.kernels->gemm(block);
      done(at, rows);
    }
  });
}

}  // namespace qk
