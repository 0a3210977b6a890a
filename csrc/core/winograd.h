// Exact F(4x4, 3x3): a 4x4 tile of a 3x3 kernel's outputs from 36 products a channel instead of 144, in integers.
//
//   U = G' g G'^T   [6][6] of a weight g [3][3]; G' = diag(24, 24, 24, 24, 24, 3) G is integer: |U| <= 144 * 127, int16
//   V = B^T d B     [6][6] of a tile d [6][6] of x: |V| <= 100 * 128, int16
//   M = sum over channels of U * V, modulo 2^32
//   576 Y = A' M A'^T modulo 2^32, with A'^T = A^T diag(1, 1, 1, 1, 1, 8): additions and shifts
//
// 576 = 64 * 9, and 9 has an inverse modulo 2^32: Y follows modulo 2^26, so it is exact where |Y| < 2^25. docs/kernels.md
// derives it.
#pragma once
#include "layout.h"
#include "problem.h"

namespace qk {

// The transformed weight: [groups][N/16][36][C/2][16][2] int16, N padded to 16 and C to 4 with zeros. Points are those of U,
// row by row.
struct WinogradWeight {
  static constexpr int64_t kPoints = 36;
  int64_t groups, n, channels;           // n, channels: of one of the packed weight's groups

  constexpr int64_t panels() const { return ceil_div(n, kPanel); }
  constexpr int64_t pairs() const { return round_up(channels, 4) / 2; }
  constexpr int64_t point() const { return pairs() * 2 * kPanel; }          // words from one to the next
  constexpr int64_t panel() const { return kPoints * point(); }
  constexpr int64_t bytes() const { return groups * panels() * panel() * int64_t(sizeof(int16_t)); }
};

// Whether it is what F(4x4, 3x3) computes; dilation is 1, and it is not depthwise.
constexpr bool is_3x3_stride_1(const Conv2dProblem& p) {
  const bool square = p.kh == 3 && p.kw == 3 && p.stride_h == 1 && p.stride_w == 1 && p.dilation_h == 1 && p.dilation_w == 1;
  return square && !is_depthwise(p.c / p.groups, p.groups);
}

// Whether no sum of products reaches 2^25, where an output channel's weights have absolute values of at most `sum` together.
constexpr bool winograd_is_exact(int64_t sum) { return 128 * sum < int64_t(1) << 25; }

}  // namespace qk
