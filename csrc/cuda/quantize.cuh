// Quantization: a block takes a row, and keeps it in registers between finding its range and rounding it.
#pragma once
#include "lanes.cuh"
#include "quantize.h"

namespace qk::cuda {
namespace {

constexpr int kHeld = 4;             // vectors that a thread keeps
constexpr int kQuantizeThreads = 256;

// Distances from 0 to the smallest and the largest value: floats above 0, which order as their bits do.
struct Ends {
  uint32_t below = 0, above = 0;
};

template <class V>
QK_DEVICE void widen(Ends& ends, typename V::F x) {
  QK_UNROLL for (int i = 0; i < V::width; ++i) {
    const float v = x.v[i];
    const uint32_t bits = float_to_bits(v) & 0x7fffffff;
    if (v < 0.0f && bits > ends.below) ends.below = bits;  // NaN is neither
    if (v > 0.0f && bits > ends.above) ends.above = bits;
  }
}

QK_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Of the whole block, known to all its threads.
QK_DEVICE Ends block_ends(Ends ends) {
  for (int mask = 16; mask; mask /= 2) {
    ends.below = larger(ends.below, shuffle_xor(ends.below, mask));
    ends.above = larger(ends.above, shuffle_xor(ends.above, mask));
  }
  char* const memory = shared_memory();
  if (lane_index() == 0) {
    shared_store(memory + warp_index() * 8, ends.below);
    shared_store(memory + warp_index() * 8 + 4, ends.above);
  }
  block_sync();
  for (int w = 0; w < thread_count() / 32; ++w) {
    ends.below = larger(ends.below, shared_load<uint32_t>(memory + w * 8));
    ends.above = larger(ends.above, shared_load<uint32_t>(memory + w * 8 + 4));
  }
  return ends;
}

QK_DEVICE Ends found_ends(const Scales& s, int64_t i) {
  return {global_load<uint32_t>(s.extremes + 2 * i), global_load<uint32_t>(s.extremes + 2 * i + 1)};
}

QK_DEVICE ScaleZero given_scale(const Scales& s, int64_t i) { return {global_load<float>(s.scale + i), global_load<int32_t>(s.zero + i)}; }

// Of a range that was found; `first` is the one thread that writes it.
QK_DEVICE ScaleZero scale_of(const Scales& s, int64_t i, const Ends& ends, bool first) {
  const ScaleZero found = dynamic_scale(-bits_to_float(ends.below), bits_to_float(ends.above), s.range == Range::dynamic_symmetric);
  if (first) {
    global_store(s.scale + i, found.scale);
    global_store(s.zero + i, found.zero);
  }
  return found;
}

template <class V>
QK_DEVICE typename V::F value_at(const QuantizeRows& p, int64_t row, int64_t i) {
  return load_float<V>(static_cast<const char*>(p.x) + row * p.x_stride * size_of(p.x_type), i, p.x_type);
}

template <class V>
QK_DEVICE void quantize_float_row(const QuantizeRows& p, int64_t row) {
  const int64_t step = thread_count() * V::width, first = thread_index() * V::width, behind = first + kHeld * step;
  const int64_t i = row / p.rows_per_scale;
  const bool own_range = p.scales.range != Range::given && !p.scales.extremes;
  typename V::F held[kHeld];
  Ends ends;
  QK_UNROLL for (int h = 0; h < kHeld; ++h) {
    if (first + h * step >= p.cols) break;
    held[h] = value_at<V>(p, row, first + h * step);
    if (own_range) widen<V>(ends, held[h]);
  }
  ScaleZero s;
  if (p.scales.range == Range::given) {
    s = given_scale(p.scales, i);
  } else {
    if (own_range) {
      for (int64_t c = behind; c < p.cols; c += step) widen<V>(ends, value_at<V>(p, row, c));
      ends = block_ends(ends);
    } else {
      ends = found_ends(p.scales, i);
    }
    s = scale_of(p.scales, i, ends, row % p.rows_per_scale == 0 && thread_index() == 0);
  }
  const auto quantizer = Quantizer<V>::make(1.0f / s.scale, s.zero);
  int8_t* const q = p.q + row * p.q_stride;
  QK_UNROLL for (int h = 0; h < kHeld; ++h)
    if (first + h * step < p.cols) V::store_s8(q + first + h * step, quantizer(held[h]));
  for (int64_t c = behind; c < p.cols; c += step) V::store_s8(q + c, quantizer(value_at<V>(p, row, c)));
}

template <class V>
QK_KERNEL(kQuantizeThreads) quantize_kernel(QK_PARAMETER QuantizeRows p) {
  const int64_t row = block_x();
  if (p.x_type != DType::s8) return quantize_float_row<V>(p, row);
  const int8_t* const x = static_cast<const int8_t*>(p.x) + row * p.x_stride;
  for (int64_t c = thread_index() * V::width; c < p.cols; c += thread_count() * V::width)
    V::store_s8(p.q + row * p.q_stride + c, V::load_s8(x + c));
}

// The range of each `rows_per_scale` rows: block_y() takes `rows_each` of the rows of scale block_x().
template <class V>
QK_KERNEL(kQuantizeThreads) extremes_kernel(QK_PARAMETER QuantizeRows p, int64_t rows_each) {
  Ends ends;
  const int64_t begin = block_x() * p.rows_per_scale, behind = begin + p.rows_per_scale;
  const int64_t first = begin + block_y() * rows_each;
  for (int64_t row = first; row < first + rows_each && row < behind && row < p.rows; ++row)
    for (int64_t c = thread_index() * V::width; c < p.cols; c += thread_count() * V::width) widen<V>(ends, value_at<V>(p, row, c));
  ends = block_ends(ends);
  if (thread_index() == 0) {
    atomic_max(p.scales.extremes + 2 * block_x(), ends.below);
    atomic_max(p.scales.extremes + 2 * block_x() + 1, ends.above);
  }
}

template <class V>
QK_KERNEL(kQuantizeThreads) dequantize_kernel(QK_PARAMETER DequantizeRows p) {
  const int64_t row = block_x(), i = row / p.rows_per_scale, item = size_of(p.y_type);
  Epilogue e;
  e.out_type = p.y_type;
  const auto finish = Finisher<V>::make(e);
  const auto scale = V::set1(global_load<float>(p.scale + i));
  const auto zero = V::set1i(global_load<int32_t>(p.zero + i));
  for (int64_t c = thread_index() * V::width; c < p.cols; c += thread_count() * V::width) {
    const int64_t at = row * p.cols + c;
    const auto steps = V::subi(V::load_s8(p.q + at), zero);
    finish.whole(V::mul(V::to_float(steps), scale), nullptr, static_cast<char*>(p.y) + at * item);
  }
}

}  // namespace
}  // namespace qk::cuda
