// Steps of a program that move values or look them up.
#pragma once
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

// x [batch, h, w, c] -> y [batch, c, h, w].
struct PlanarProblem {
  int64_t batch = 0, pixels = 0, c = 0;
  DType type = DType::s8;
  const void* x = nullptr;
  void* y = nullptr;
};
void to_planar(const PlanarProblem& p, const Parallel& parallel);

void lookup(const LookupProblem& p, Isa isa, const Parallel& parallel);

}  // namespace qk
