#include "pack.h"

#include <cstring>

#include "../core/elements.h"

namespace qk {
namespace {

// Calls body(index in weight, layout's group, row, column) for every element.
template <class Body>
void for_elements(const WeightElements& w, Body body) {
  int64_t i = 0;
  for (int64_t o = 0; o < w.oc; ++o)
    for (int64_t ci = 0; ci < w.c; ++ci)
      for (int64_t y = 0; y < w.kh; ++y)
        for (int64_t x = 0; x < w.kw; ++x) body(i++, w.group(o), w.channel(o), w.k(o, ci, y, x));
}

}  // namespace

bool pack_weight(const int8_t* weight, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* packed) {
  const WeightElements elements(oc, c, kh, kw, groups);
  const PackedLayout& layout = elements.layout;
  std::memset(packed, 0, size_t(layout.bytes()));
  int32_t* sums = const_cast<int32_t*>(layout.sums(packed, 0));
  const int32_t shape[] = {kLayoutVersion, int32_t(layout.groups), int32_t(layout.n), int32_t(layout.k)};
  std::memcpy(packed + layout.shape_offset(), shape, sizeof shape);
  bool in_range = true;
  for_elements(elements, [&](int64_t i, int64_t group, int64_t row, int64_t column) {
    packed[layout.offset(group, row, column)] = weight[i];
    sums[group * layout.n_padded() + row] += weight[i];
    in_range &= weight[i] != -128;
  });
  return in_range;
}

void unpack_weight(const int8_t* packed, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* weight) {
  const WeightElements elements(oc, c, kh, kw, groups);
  const PackedLayout& layout = elements.layout;
  for_elements(elements, [&](int64_t i, int64_t group, int64_t row, int64_t column) {
    weight[i] = packed[layout.offset(group, row, column)];
  });
}

}  // namespace qk
