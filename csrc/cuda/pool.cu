#include "pool.h"

#include "index.h"
#include "lanes.cuh"
#include "launch.cuh"

namespace qk::cuda {
namespace {

constexpr int kPoolThreads = 128;

// A thread takes V::width channels of an output pixel.
template <class V>
QK_KERNEL(kPoolThreads) pool_kernel(QK_PARAMETER Pool2dProblem p, QK_PARAMETER Divisor vectors, QK_PARAMETER Divisor line, QK_PARAMETER Divisor lines) {
  const uint32_t at = uint32_t(block_x() * kPoolThreads + thread_index());
  const uint32_t pixel = vectors.quotient(at), row = line.quotient(pixel), image = lines.quotient(row);
  if (image >= p.batch) return;
  const int64_t c = (at - pixel * vectors.divisor) * V::width;
  const int64_t h0 = int64_t(lines.remainder(row)) * p.stride_h - p.pad_h, w0 = int64_t(line.remainder(pixel)) * p.stride_w - p.pad_w;
  const int64_t h_end = h0 + p.kh < p.h + p.pad_h ? h0 + p.kh : p.h + p.pad_h;  // of the padded window
  const int64_t w_end = w0 + p.kw < p.w + p.pad_w ? w0 + p.kw : p.w + p.pad_w;
  auto total = V::set1i(p.average ? 0 : -128);
  int32_t inside = 0;
  for (int64_t i = 0; i < p.kh; ++i) {
    const int64_t h = h0 + i * p.dilation_h;
    if (h < 0 || h >= p.h) continue;
    for (int64_t j = 0; j < p.kw; ++j) {
      const int64_t w = w0 + j * p.dilation_w;
      if (w < 0 || w >= p.w) continue;
      const auto x = V::load_s8(static_cast<const int8_t*>(p.x) + ((image * p.h + h) * p.w + w) * p.c + c);
      QK_UNROLL for (int v = 0; v < V::width; ++v)
        total.v[v] = p.average ? total.v[v] + x.v[v] : total.v[v] > x.v[v] ? total.v[v] : x.v[v];
      ++inside;
    }
  }
  if (p.average) {  // round_half_even(sum * (1 / count)); padding counts as real 0
    const int32_t window = p.count_include_pad ? int32_t((h_end - h0) * (w_end - w0)) : inside;
    total = V::addi(total, V::set1i((window - inside) * p.x_zero));
    total = V::round(V::mul(V::to_float(total), V::set1(1.0f / float(window))));
  }
  V::store_s8(static_cast<int8_t*>(p.y) + int64_t(pixel) * p.c + c, total);
}

// A thread adds the pixels of one channel, in the contract's order.
QK_KERNEL(kPoolThreads) mean_kernel(QK_PARAMETER MeanProblem p, QK_PARAMETER Divisor channels) {
  const uint32_t at = uint32_t(block_x() * kPoolThreads + thread_index()), image = channels.quotient(at);
  if (image >= p.batch) return;
  const float* const x = p.x + image * p.x_strides[0] + channels.remainder(at) * p.x_strides[1];
  float total = 0;
  for (int64_t h = 0; h < p.h; ++h)
    for (int64_t w = 0; w < p.w; ++w) total += global_load<float>(x + h * p.x_strides[2] + w * p.x_strides[3]);
  global_store(p.y + at, total * (1.0f / float(p.h * p.w)));
}

template <class V>
int run(const Pool2dProblem& p, Stream stream) {
  const int64_t vectors = p.c / V::width;
  const Grid grid{ceil_div(p.batch * p.oh * p.ow * vectors, kPoolThreads)};
  return launch<pool_kernel<V>>(grid, kPoolThreads, 0, stream, p, Divisor(vectors), Divisor(p.ow), Divisor(p.oh));
}

}  // namespace

int pool2d(const Pool2dProblem& p, Stream stream) {
  const bool vectors = p.c % 4 == 0 && (reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.y)) % 4 == 0;
  return vectors ? run<Lanes<4>>(p, stream) : run<Lanes<1>>(p, stream);
}

int mean(const MeanProblem& p, Stream stream) {
  return launch<mean_kernel>({ceil_div(p.batch * p.c, kPoolThreads)}, kPoolThreads, 0, stream, p, Divisor(p.c));
}

}  // namespace qk::cuda
