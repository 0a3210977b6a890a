// How an int8 GEMM, linear or convolution, is cut into blocks, and where everything lies in its workspace.
#pragma once
#include "kernel.h"

namespace qk {

constexpr int64_t kProductsPerThread = 1 << 19;  // multiply-adds below which another thread costs more than it gives

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
  // The workspace: per-channel values to whole panels, then for each worker its packed rows, their scales and offsets, and a
  // staged block of C. Offsets are bytes from its start, and from a worker's.
  int64_t panels, rows, rows_each, row_scale, row_offset, staged, bytes;

  int64_t tasks() const { return layout.groups * parts * row_blocks * col_blocks; }
};

// Rows in units that stay together, with the bytes of x that a row reads and of C that it writes.
struct RowParts {
  int64_t parts, part_rows, unit, x_bytes, c_bytes;
};

// `staged_item`: bytes of an element of C where blocks of it are staged, else 0.
GemmPlan plan_gemm(const RowParts& rows, const PackedLayout& layout, const Kernels& kernels, int threads, const Epilogue& e,
                   int64_t staged_item);

}  // namespace qk
