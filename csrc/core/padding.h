// Where a position outside of an image reads it.
#pragma once
#include "problem.h"

namespace qk {

// The source index of padded position i in an axis of n, or -1 for the zero point. Padding is at most n.
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

}  // namespace qk
