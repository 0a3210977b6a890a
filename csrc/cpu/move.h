// Steps of a program that move values or look them up.
#pragma once
#include <algorithm>
#include <cmath>

#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

// y[n, pad_top + i, pad_left + j, channel + k] = x[n, i*stride_h, j*stride_w, k]; where `fill`, the rest of y is
// `fill_value`. NHWC, contiguous.
struct CopyProblem {
  int64_t batch = 0, h = 0, w = 0, c = 0, oh = 0, ow = 0, oc = 0;
  int64_t stride_h = 1, stride_w = 1, pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0, channel = 0;
  bool fill = false;
  int8_t fill_value = 0;       // of s8; f32 is filled with 0
  DType type = DType::s8;
  const void* x = nullptr;
  void* y = nullptr;
};
void copy(const CopyProblem& p, const Parallel& parallel);

// Elements of `item` bytes from x to y, one for each index of all dims; no two go to one place, and x and y do not overlap.
struct MoveProblem {
  static constexpr int kMost = 8;
  struct Dim {
    int64_t count, x, y;       // bytes from one index to the next
  };
  int count = 0;               // of dims
  Dim dims[kMost];
  int64_t item = 1;
  const void* x = nullptr;
  void* y = nullptr;
};
void move(MoveProblem p, const Parallel& parallel);

// x [batch, h, w, c] -> y [batch, c, h, w].
struct PlanarProblem {
  int64_t batch = 0, pixels = 0, c = 0;
  DType type = DType::s8;
  const void* x = nullptr;
  void* y = nullptr;
};
void to_planar(const PlanarProblem& p, const Parallel& parallel);

// Numbers of rows: the caller's, or computed. Where one names no row, the nearest is taken.
struct Ids {
  const int64_t* whole = nullptr;
  const float* computed = nullptr;     // instead

  bool names(int64_t i, int64_t rows) const {
    return whole ? whole[i] >= 0 && whole[i] < rows : computed[i] >= 0 && computed[i] < float(rows) && computed[i] == std::floor(computed[i]);
  }
  int64_t row(int64_t i, int64_t rows) const {
    if (whole) return std::clamp<int64_t>(whole[i], 0, rows - 1);
    return computed[i] >= 1 ? int64_t(std::min(double(computed[i]), double(rows - 1))) : 0;  // NaN: 0
  }
};

// y[i] = table[ids[i]], a row of c values, times its scale where there is one.
struct EmbeddingProblem {
  int64_t count = 0, rows = 0, c = 0;
  Ids ids;                             // [count], in [0, rows)
  const void* table = nullptr;         // [rows, c]: int8, or f32 where there is no scale
  const float* scale = nullptr;        // [rows] or null
  void* y = nullptr;                   // [count, c]
  Epilogue epilogue;                   // the output's type and scale
};
int64_t embedding_workspace(const EmbeddingProblem& p, int threads);
void embedding(const EmbeddingProblem& p, Isa isa, const Parallel& parallel, void* workspace);

// y[i] = x[i, ids[i]]: a row of so many bytes out of `rows` of them.
struct GatherProblem {
  int64_t count = 0, rows = 0, bytes = 0;
  Ids ids;
  const void* x = nullptr;
  void* y = nullptr;
};
void gather(const GatherProblem& p);

void lookup(const LookupProblem& p, Isa isa, const Parallel& parallel);

}  // namespace qk
