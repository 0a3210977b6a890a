// Where a position outside of an image reads it, and how many windows an image has.
#pragma once
#include "problem.h"

namespace qk {

// Whether an axis of n can be padded by so much: mirrored and circular padding reads no value twice.
constexpr bool fits(PadMode mode, int64_t pad, int64_t n) {
  if (mode == PadMode::reflect) return pad < n;
  return mode != PadMode::circular || pad <= n;
}

// The source index of padded position i in an axis of n, or -1 for the zero point. The padding `fits`.
constexpr int64_t source_index(int64_t i, int64_t n, PadMode mode) {
  if (i >= 0 && i < n) return i;
  switch (mode) {
    case PadMode::zeros: return -1;
    case PadMode::reflect: return i < 0 ? -i : 2 * (n - 1) - i;
    case PadMode::replicate: return i < 0 ? 0 : n - 1;
    case PadMode::circular: return i < 0 ? i + n : i - n;
  }
  return -1;
}

// Windows of a pool along an axis.
constexpr int64_t pooled(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool ceil_mode) {
  const int64_t span = size + 2 * pad - dilation * (kernel - 1) - 1;
  int64_t out = (span + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (out - 1) * stride >= size + pad) --out;  // a window must start inside the image or its left border
  return out;
}

}  // namespace qk
