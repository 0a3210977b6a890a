#include "pack.h"

#include <cstring>

namespace qk {
namespace {

// Calls body(index in weight, row of the layout's group, group, column) for every element.
template <class Body>
void for_elements(int64_t oc, int64_t c, int64_t kh, int64_t kw, const PackedLayout& layout, Body body) {
  int64_t i = 0;
  for (int64_t o = 0; o < oc; ++o)
    for (int64_t ci = 0; ci < c; ++ci)
      for (int64_t tap = 0; tap < kh * kw; ++tap) body(i++, o % layout.n, o / layout.n, tap * c + ci);
}

}  // namespace

bool pack_weight(const int8_t* weight, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* packed) {
  const PackedLayout layout = weight_layout(oc, c, kh, kw, groups);
  std::memset(packed, 0, size_t(layout.bytes()));
  int32_t* sums = const_cast<int32_t*>(layout.sums(packed, 0));
  bool in_range = true;
  for_elements(oc, c, kh, kw, layout, [&](int64_t i, int64_t row, int64_t group, int64_t column) {
    packed[layout.offset(group, row, column)] = weight[i];
    sums[group * layout.n_padded() + row] += weight[i];
    in_range &= weight[i] != -128;
  });
  return in_range;
}

void unpack_weight(const int8_t* packed, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* weight) {
  const PackedLayout layout = weight_layout(oc, c, kh, kw, groups);
  for_elements(oc, c, kh, kw, layout, [&](int64_t i, int64_t row, int64_t group, int64_t column) {
    weight[i] = packed[layout.offset(group, row, column)];
  });
}

}  // namespace qk
