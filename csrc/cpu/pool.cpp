#include "pool.h"

#include <algorithm>

#include "dispatch.h"

namespace qk {
namespace {

// One output row of f32; a NaN stays one.
void max_row(const Pool2dProblem& p, int64_t image, int64_t row) {
  const float* x = static_cast<const float*>(p.x) + image * p.h * p.w * p.c;
  float* y = static_cast<float*>(p.y) + (image * p.oh + row) * p.ow * p.c;
  for (int64_t ow = 0; ow < p.ow; ++ow, y += p.c) {
    std::fill_n(y, p.c, -__builtin_inff());
    for (int64_t i = 0; i < p.kh; ++i) {
      const int64_t h = row * p.stride_h - p.pad_h + i * p.dilation_h;
      if (h < 0 || h >= p.h) continue;
      for (int64_t j = 0; j < p.kw; ++j) {
        const int64_t w = ow * p.stride_w - p.pad_w + j * p.dilation_w;
        if (w < 0 || w >= p.w) continue;
        const float* pixel = x + (h * p.w + w) * p.c;
        for (int64_t c = 0; c < p.c; ++c) y[c] = pixel[c] > y[c] || pixel[c] != pixel[c] ? pixel[c] : y[c];
      }
    }
  }
}

// Channels [begin, end) of one image; the sums of a few channels stay in registers or L1.
void mean_channels(const MeanProblem& p, int64_t image, int64_t begin, int64_t end) {
  const float *x = p.x + image * p.x_strides[0], inverse = 1.0f / float(p.h * p.w);
  float* y = p.y + image * p.c;
  std::fill(y + begin, y + end, 0.0f);
  for (int64_t h = 0; h < p.h; ++h)
    for (int64_t w = 0; w < p.w; ++w) {
      const float* pixel = x + h * p.x_strides[2] + w * p.x_strides[3];
      if (p.x_strides[1] == 1)
        for (int64_t c = begin; c < end; ++c) y[c] += pixel[c];
      else
        for (int64_t c = begin; c < end; ++c) y[c] += pixel[c * p.x_strides[1]];
    }
  for (int64_t c = begin; c < end; ++c) y[c] *= inverse;
}

}  // namespace

void pool2d(const Pool2dProblem& p, Isa isa, const Parallel& parallel) {
  const int64_t lines = p.batch * p.oh;
  const int workers = workers_for(lines * p.ow * p.c * p.kh * p.kw, kElementsPerThread, parallel.threads);
  const auto pool = kernels_of(isa).pool;
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(lines, workers, worker);
    for (int64_t line = mine.begin; line < mine.end; ++line)
      p.type == DType::s8 ? pool(p, line / p.oh, line % p.oh) : max_row(p, line / p.oh, line % p.oh);
  });
}

void mean(const MeanProblem& p, const Parallel& parallel) {
  constexpr int64_t kChannels = 64;
  const int64_t blocks = ceil_div(p.c, kChannels), tasks = p.batch * blocks;
  const int workers = int(std::min<int64_t>(tasks, workers_for(p.batch * p.h * p.w * p.c, kElementsPerThread, parallel.threads)));
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(tasks, workers, worker);
    for (int64_t task = mine.begin; task < mine.end; ++task) {
      const int64_t begin = task % blocks * kChannels;
      mean_channels(p, task / blocks, begin, std::min(begin + kChannels, p.c));
    }
  });
}

}  // namespace qk
