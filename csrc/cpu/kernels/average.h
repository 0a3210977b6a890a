// Means over windows of an image, lanes are channels.
#pragma once
#include "columns.h"

namespace qk {
namespace {

// What a window of one axis covers: of the image, and of the padded one.
struct Covered {
  int64_t first, count, padded;

  QK_INLINE Covered of(const AveragePoolProblem& p, int64_t i, int64_t size, int64_t windows, int64_t kernel, int64_t stride, int64_t pad) {
    const int64_t begin = p.adaptive ? i * size / windows : i * stride - pad;
    const int64_t end = p.adaptive ? ceil_div((i + 1) * size, windows) : begin + kernel;
    const int64_t from = begin > 0 ? begin : 0, to = end < size ? end : size;
    return {from, to - from, (end < size + pad ? end : size + pad) - begin};
  }
};

// One output row.
template <class V>
void average(const AveragePoolProblem& p, int64_t image, int64_t row) {
  const auto finish = Finisher<V>::make(p.epilogue);
  const int64_t item = size_of(p.epilogue.out_type), line = p.w * p.c;
  const Covered down = Covered::of(p, row, p.h, p.oh, p.kh, p.stride_h, p.pad_h);
  char* y = static_cast<char*>(p.y) + (image * p.oh + row) * p.ow * p.c * item;
  for (int64_t ow = 0; ow < p.ow; ++ow, y += p.c * item) {
    const Covered across = Covered::of(p, ow, p.w, p.ow, p.kw, p.stride_w, p.pad_w);
    const bool padded = p.count_include_pad && !p.adaptive;
    const auto inverse = V::set1(1.0f / float(padded ? down.padded * across.padded : down.count * across.count));
    const int64_t at = image * p.h * line + down.first * line + across.first * p.c;
    sum_pixels<V>(p.x, at, line, p.c, p.c, down.count, across.count,
                  [=, &finish](int64_t c, typename V::F total, int64_t left) QK_LAMBDA { finish(V::mul(total, inverse), nullptr, left, y + c * item); });
  }
}

}  // namespace
}  // namespace qk
