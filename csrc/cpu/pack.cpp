#include "pack.h"

#include <cstring>

namespace qk {
namespace {

// Calls body(index in weight, layout's group, row, column) for every element. K runs over taps, then channels.
template <class Body>
void for_elements(int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, const PackedLayout& layout, Body body) {
  const bool depthwise = is_depthwise(c, groups);
  const int64_t n = oc / groups, merge = merged_groups(oc, c, groups);
  int64_t i = 0;
  for (int64_t o = 0; o < oc; ++o) {
    const int64_t within = depthwise ? 0 : o / n % merge;  // which of the merged groups
    const int64_t width = depthwise ? 1 : c * merge, row = depthwise ? kw : kernel_row(width, kw);
    for (int64_t ci = 0; ci < c; ++ci)
      for (int64_t y = 0; y < kh; ++y)
        for (int64_t x = 0; x < kw; ++x)
          body(i++, o / layout.n, o % layout.n, y * row + x * width + within * c + ci);
  }
}

}  // namespace

bool pack_weight(const int8_t* weight, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* packed) {
  const PackedLayout layout = weight_layout(oc, c, kh, kw, groups);
  std::memset(packed, 0, size_t(layout.bytes()));
  int32_t* sums = const_cast<int32_t*>(layout.sums(packed, 0));
  const int32_t shape[] = {kLayoutVersion, int32_t(layout.groups), int32_t(layout.n), int32_t(layout.k)};
  std::memcpy(packed + layout.shape_offset(), shape, sizeof shape);
  bool in_range = true;
  for_elements(oc, c, kh, kw, groups, layout, [&](int64_t i, int64_t group, int64_t row, int64_t column) {
    packed[layout.offset(group, row, column)] = weight[i];
    sums[group * layout.n_padded() + row] += weight[i];
    in_range &= weight[i] != -128;
  });
  return in_range;
}

void unpack_weight(const int8_t* packed, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* weight) {
  const PackedLayout layout = weight_layout(oc, c, kh, kw, groups);
  for_elements(oc, c, kh, kw, groups, layout, [&](int64_t i, int64_t group, int64_t row, int64_t column) {
    weight[i] = packed[layout.offset(group, row, column)];
  });
}

}  // namespace qk
