// Kernel sizes, strides, paddings and dilations.
#pragma once
#include <algorithm>
#include <span>

#include "refusal.h"
#include "../core/problem.h"

namespace qk {

inline void check_extents(const char* what, std::span<const int64_t> v, size_t count, int64_t least) {
  check(v.size() == count, what, " holds ", v.size(), " integers; ", count, " are needed");
  for (int64_t i : v) check(i >= least && i <= kMaxExtent, what, " holds ", i, ", which is outside [", least, ", ", kMaxExtent, "]");
}

}  // namespace qk
