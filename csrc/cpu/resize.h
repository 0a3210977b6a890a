// Images of another size: every pixel of y is a pixel of x, or a blend of four. NHWC, contiguous.
#pragma once
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

enum class ResizeMode : uint8_t { nearest, nearest_exact, bilinear };
constexpr const char* kResizeModeNames[] = {"nearest", "nearest-exact", "bilinear", nullptr};
inline const char* const* choices_of(ResizeMode) { return kResizeModeNames; }

// The place in x that a row or column of y is read from: two neighbours and the second one's share.
struct Tap {
  int64_t first = 0, second = 0;
  float share = 0.0f;
};

// How torch maps an axis of y to one of x: by a factor of sizes (0: their ratio), or with both ends on each other.
struct AxisMap {
  ResizeMode mode = ResizeMode::nearest;
  bool align_corners = false;          // of bilinear
  double scale = 0.0;
  int64_t in = 0, out = 0;
};
void set_taps(const AxisMap& map, Tap* taps);

struct ResizeProblem {
  int64_t batch = 0, h = 0, w = 0, c = 0, oh = 0, ow = 0;
  bool blends = false;                 // else the first of two neighbours alone is taken
  DType type = DType::s8;
  int8_t mask = 0;                     // what int8 x and y are XORed with
  const Tap *rows = nullptr, *columns = nullptr;  // [oh], [ow]
  const void* x = nullptr;             // [batch,h,w,c]
  void* y = nullptr;                   // [batch,oh,ow,c], int8 of the same scale and zero point
};
void resize(const ResizeProblem& p, const Parallel& parallel);

}  // namespace qk
