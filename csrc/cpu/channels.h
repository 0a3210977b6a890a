// Per-channel values as the kernels read them: to whole panels of channels, from the start of every group.
#pragma once
#include <algorithm>
#include <cstring>

#include "../core/epilogue.h"
#include "../core/workspace.h"

namespace qk {

// Copied only where they do not lie so.
template <class T>
const T* to_whole_panels(Workspace& w, const T* values, const PackedLayout& layout) {
  if (!values || layout.n % kPanel == 0) return values;
  const int64_t n = layout.groups * layout.n;
  T* copy = w.take<T>(n + kPanel);
  if (copy) {
    std::memcpy(copy, values, size_t(n) * sizeof(T));
    std::fill(copy + n, copy + n + kPanel, T(0));
  }
  return copy;
}

inline Epilogue to_whole_panels(Workspace& w, const Epilogue& e, const PackedLayout& layout) {
  Epilogue out = e;
  out.w_scale = to_whole_panels(w, e.w_scale, layout);
  out.bias = to_whole_panels(w, e.bias, layout);
  return out;
}

inline Epilogue epilogue_of_group(const Epilogue& e, const PackedLayout& layout, const int8_t* weight, int64_t group) {
  Epilogue out = e;
  const int64_t first = group * layout.n;
  out.w_scale += first;
  if (out.bias) out.bias += first;
  if (out.residual) out.residual = static_cast<const char*>(out.residual) + first * size_of(e.residual_type);
  out.w_sum = layout.sums(weight, group);
  return out;
}

}  // namespace qk
