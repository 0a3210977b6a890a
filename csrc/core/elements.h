// Where each element of a canonical weight lies in the packed one.
#pragma once
#include "layout.h"

namespace qk {

// weight [oc, c, kh, kw], c = channels per group; K runs over kernel rows, columns, then channels.
struct WeightElements {
  int64_t oc, c, kh, kw, groups;
  PackedLayout layout;
  bool depthwise;
  int64_t merge, width, row;  // groups of one in the layout; K of a tap, of a kernel row

  constexpr WeightElements(int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups)
      : oc(oc), c(c), kh(kh), kw(kw), groups(groups), layout(weight_layout(oc, c, kh, kw, groups)),
        depthwise(is_depthwise(c, groups)), merge(merged_groups(oc, c, groups)), width(depthwise ? 1 : c * merge),
        row(depthwise ? kw : kernel_row(width, kw)) {}

  constexpr int64_t each() const { return c * kh * kw; }  // elements of an output channel
  constexpr int64_t group(int64_t o) const { return o / layout.n; }
  constexpr int64_t channel(int64_t o) const { return o % layout.n; }
  constexpr int64_t k(int64_t o, int64_t ci, int64_t y, int64_t x) const {
    return y * row + x * width + (depthwise ? 0 : o / (oc / groups) % merge * c) + ci;
  }
};

}  // namespace qk
