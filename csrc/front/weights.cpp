#include <algorithm>

#include "problems.h"

namespace qk {

WeightSize weight_size(std::span<const int64_t> size, int64_t groups) {
  check(size.size() == 2 || size.size() == 4, "weight has ", size.size(), " axes; 2 (linear) or 4 (conv2d) are supported");
  const bool conv = size.size() == 4;
  const WeightSize w{size[0], size[1], conv ? size[2] : 1, conv ? size[3] : 1, groups};
  check(groups >= 1 && w.oc % groups == 0, "groups=", groups, " does not divide the ", w.oc, " output channels");
  check(w.oc >= 1 && w.c >= 1 && w.kh >= 1 && w.kw >= 1, "weight is empty");
  const double k = double(w.c) * double(w.kh) * double(w.kw);
  check(k <= double(kMaxK), "K=", int64_t(std::min(k, 0x1p62)), " is above the limit of ", kMaxK);
  check(double(w.oc) * k < 0x1p50, "a weight of ", w.oc, " output channels is too large");
  return w;
}

WeightSize weight_to_pack(const Array& weight, int64_t groups) {
  check_type(weight.type.element == Element::s8, "weight is ", weight.type.name, "; it must be int8");
  check(weight.contiguous, "weight must be contiguous");
  return weight_size({weight.sizes, size_t(weight.axes)}, groups);
}

WeightSize weight_to_unpack(const Array& packed, std::span<const int64_t> size, int64_t groups) {
  const WeightSize w = weight_size(size, groups);
  packed_of(packed, w.layout(), packed);
  return w;
}

void check_packed_range(bool in_range) { check(in_range, "weight holds -128; int8 weights are in [-127, 127]"); }

}  // namespace qk
