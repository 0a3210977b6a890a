// What a scale may be: finite, above 0, and so is its inverse, by which values are quantized.
#pragma once
#include <cfloat>
#include <cstdint>

namespace qk {

constexpr bool is_scale(float v) { return bool(int(v > 0x1p-128f) & int(v <= FLT_MAX)); }  // 1 / 2^-128 is infinite

// Without a branch a value: called for all of a program's.
inline bool are_scales(const float* v, int64_t count) {
  bool good = true;
  for (int64_t i = 0; i < count; ++i) good &= is_scale(v[i]);
  return good;
}

}  // namespace qk
