// Group normalization: the channels of a group over all pixels of an image. Lanes are channels; the pixels of a line are
// added one after the other, then lines, then the channels of a group.
#pragma once
#include "columns.h"

namespace qk {
namespace {

// sums[c] = of channel c; add(sum, values, c) takes a pixel.
template <class V, class Run, class Add>
QK_INLINE void sum_channels(const GroupNormProblem& p, const Run run, int64_t channels, Add add, float* sums) {
  const int64_t line = p.w * p.c, pixel = p.c;
  const auto zero = V::set1(0.0f);
  for_columns<V>(
      channels,
      [&](int64_t c) QK_LAMBDA {
        typename V::F total[4] = {zero, zero, zero, zero};
        for (int64_t h = 0; h < p.h; ++h) {
          typename V::F sum[4] = {zero, zero, zero, zero};
          for (int64_t w = 0; w < p.w; ++w)
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) sum[v] = add(sum[v], run(h * line + w * pixel + c + v * V::width, V::width), c + v * V::width);
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) total[v] = V::add(total[v], sum[v]);
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) V::store_f32(sums + c + v * V::width, total[v]);
      },
      [&](int64_t c, int64_t left) QK_LAMBDA {
        auto total = zero;
        for (int64_t h = 0; h < p.h; ++h) {
          auto sum = zero;
          for (int64_t w = 0; w < p.w; ++w) sum = add(sum, run(h * line + w * pixel + c, left), c);
          total = V::add(total, sum);
        }
        V::store_f32(sums + c, total);
      });
}

// The sums of a group's channels, times `factor`, to each of its channels.
template <class Finish>
QK_INLINE void share_out(const float* sums, int64_t channels, int64_t each, float* y, Finish finish) {
  for (int64_t g = 0; g < channels; g += each) {
    float total = 0.0f;
    for (int64_t c = 0; c < each; ++c) total += sums[g + c];
    const float value = finish(total);
    for (int64_t c = 0; c < each; ++c) y[g + c] = value;
  }
}

// Groups [begin, end) of an image.
template <class V>
void group_norm(const GroupNormProblem& p, int64_t image, int64_t begin, int64_t end, float* memory) {
  const int64_t each = p.c / p.groups, first = begin * each, channels = (end - begin) * each, step = round_up(p.c, kParts);
  const int64_t at = image * p.h * p.w * p.c + first, item = size_of(p.epilogue.out_type);
  const float count = float(p.h * p.w * each), epsilon = p.epsilon;
  float *sums = memory, *mean = memory + step, *inverse = memory + 2 * step;
  const float *weight = p.weight + first, *bias = p.bias + first;
  const auto finish = Finisher<V>::make(p.epilogue);
  with_run<V>(p.x, at, [&](auto run) QK_LAMBDA {
    sum_channels<V>(p, run, channels, [](typename V::F sum, typename V::F v, int64_t) QK_LAMBDA { return V::add(sum, v); }, sums);
    share_out(sums, channels, each, mean, [=](float total) QK_LAMBDA { return total / count; });
    sum_channels<V>(p, run, channels, [=](typename V::F sum, typename V::F v, int64_t c) QK_LAMBDA {
      const auto away = V::sub(v, V::load_f32(mean + c));
      return V::fma(away, away, sum);
    }, sums);
    share_out(sums, channels, each, inverse, [=](float total) QK_LAMBDA { return 1.0f / __builtin_sqrtf(total / count + epsilon); });
    for (int64_t pixel = 0; pixel < p.h * p.w; ++pixel)
      store_run<V>(finish, channels, static_cast<char*>(p.y) + (at + pixel * p.c) * item, [=](int64_t c, int64_t left) QK_LAMBDA {
        const auto away = V::sub(run(pixel * p.c + c, left), V::load_f32(mean + c));
        return V::fma(V::mul(away, V::load_f32(inverse + c)), load_some<V>(weight + c, left), load_some<V>(bias + c, left));
      });
  });
}

}  // namespace
}  // namespace qk
