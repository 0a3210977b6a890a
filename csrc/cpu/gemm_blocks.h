// The one loop of every int8 GEMM here, linear or convolution: for each block of C, the caller packs its rows of x right before
// their use (or says where they lie), multiplies, and takes the block where it belongs.
#pragma once
#include <algorithm>

#include "channels.h"
#include "gemm_plan.h"
#include "parallel.h"

namespace qk {

// Rows of x as the kernel reads them, with what turns their sums back into floats.
struct PackedRows {
  int8_t* a;               // [block_rows][lda]
  float* scale;            // [block_rows]
  int32_t* offset;         // [block_rows], zero point - Kernels::x_mask
  char* c;                 // [block_rows][block_cols] of output where the caller asked for a staging block
};

// Which part of C: rows [m0, m0 + rows) by columns [n0, n0 + cols) of one group.
struct BlockPosition {
  int64_t group, m0, rows, n0, cols;
  bool new_rows;           // other rows of x than the worker's block before
};

// Elements between rows, and more of them after each `line` rows, the first of which is `column` of its line.
struct Destination {
  void* c;
  int64_t stride;
  int64_t gap = 0, line = 1, column = 0;
};

inline PackedRows packed_rows(const GemmPlan& plan, char* memory, int64_t worker) {
  char* own = memory + plan.rows + worker * plan.rows_each;
  return {reinterpret_cast<int8_t*>(own), reinterpret_cast<float*>(own + plan.row_scale), reinterpret_cast<int32_t*>(own + plan.row_offset),
          own + plan.staged};
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

// body(at, rows, block) for every block of C, each worker's one after the other. `block` stays a worker's: it reads the rows
// that body fills in where they are new, and what `rows` has of their scales.
template <class Body>
void for_blocks(const GemmPlan& plan, const Parallel& parallel, char* memory, Body body) {
  parallel(plan.workers, [&](int64_t worker) {
    const PackedRows rows = packed_rows(plan, memory, worker);
    const Share tasks = share(plan.tasks(), plan.workers, worker);
    GemmBlock block;
    block.row_scale = rows.scale;
    block.row_offset = rows.offset;
    int64_t before = -1;                     // the (group, row block) of the last task
    for (int64_t task = tasks.begin; task < tasks.end; ++task) {
      const int64_t source = task / plan.col_blocks;
      BlockPosition at;
      at.group = source / (plan.parts * plan.row_blocks);
      const int64_t first = source % plan.row_blocks * plan.block_rows;
      at.m0 = source / plan.row_blocks % plan.parts * plan.part_rows + first;
      at.rows = std::min(plan.block_rows, plan.part_rows - first);
      at.n0 = task % plan.col_blocks * plan.block_cols;
      at.cols = std::min(plan.block_cols, plan.layout.n - at.n0);
      at.new_rows = source != before;
      before = source;
      body(at, rows, block);
    }
  });
}

// The rows that `block` reads by the weights at hand, to where they belong. `whole`: per-channel values to whole panels.
inline void multiply(const GemmPlan& plan, const int8_t* weight, const Epilogue& whole, const BlockPosition& at, const Destination& to,
                     GemmBlock& block) {
  const Epilogue epilogue = epilogue_of_group(whole, plan.layout, weight, at.group);
  block.panel_bytes = plan.layout.panel_bytes();
  block.b = plan.layout.values(weight, at.group) + at.n0 / kPanel * block.panel_bytes;
  block.cols = at.cols;
  block.m0 = at.m0;
  block.n0 = at.n0;
  block.c = to.c;
  block.c_stride = to.stride;
  block.c_gap = to.gap;
  block.c_line = to.line;
  block.c_column = to.column;
  block.epilogue = &epilogue;
  plan.kernels->gemm(block);
}

}  // namespace qk
