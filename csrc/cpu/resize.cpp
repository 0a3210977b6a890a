#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace qk {
namespace {

constexpr int64_t kBytesPerThread = 1 << 17;

// The integer at or below v, within [0, in).
int64_t index_of(float v, int64_t in) {
  if (!(v > 0.0f)) return 0;
  return v < float(in) ? std::min(int64_t(v), in - 1) : in - 1;
}

float factor_of(const AxisMap& map) {
  if (map.align_corners) return map.out > 1 ? float(map.in - 1) / float(map.out - 1) : 0.0f;
  return map.scale > 0.0 ? float(1.0 / map.scale) : float(map.in) / float(map.out);
}

Tap tap_of(const AxisMap& map, float factor, int64_t i) {
  if (map.in == map.out && map.mode != ResizeMode::nearest_exact) return {i, i, 0.0f};  // as torch, whatever the scale
  if (map.mode == ResizeMode::nearest) {
    const int64_t first = map.out == 2 * map.in ? i / 2 : index_of(float(i) * factor, map.in);
    return {first, first, 0.0f};
  }
  if (map.mode == ResizeMode::nearest_exact) {
    const int64_t first = index_of((float(i) + 0.5f) * factor, map.in);
    return {first, first, 0.0f};
  }
  const float at = map.align_corners ? float(i) * factor : std::max((float(i) + 0.5f) * factor - 0.5f, 0.0f);
  const int64_t first = index_of(at, map.in);
  const float share = at - float(first);
  return {first, std::min(first + 1, map.in - 1), share > 0.0f ? std::min(share, 1.0f) : 0.0f};
}

// The four pixels of one of y, and their weights; docs/numerics.md has the order.
template <class T>
struct Corners {
  const T *a, *b, *c, *d;
  float wa, wb, wc, wd;
};

// Copied, and y apart from x, so that what is read stays in registers.
void blend(const Corners<float> k, int64_t count, int8_t, float* __restrict y) {
  for (int64_t i = 0; i < count; ++i) y[i] = k.wa * k.a[i] + k.wb * k.b[i] + k.wc * k.c[i] + k.wd * k.d[i];
}

void blend(const Corners<int8_t> k, int64_t count, int8_t mask, int8_t* __restrict y) {
  constexpr float kRound = 0x1.8p23f;  // added and taken away again, it leaves an integer, halves to even
  const auto number = [mask](int8_t q) { return float(int8_t(q ^ mask)); };
  for (int64_t i = 0; i < count; ++i) {
    const float v = k.wa * number(k.a[i]) + k.wb * number(k.b[i]) + k.wc * number(k.c[i]) + k.wd * number(k.d[i]);
    y[i] = int8_t(int32_t(std::min(std::max((v + kRound) - kRound, -128.0f), 127.0f))) ^ mask;
  }
}

template <class T>
void blend_row(const ResizeProblem& p, const T* x, const Tap& row, T* y) {
  const T *upper = x + row.first * p.w * p.c, *lower = x + row.second * p.w * p.c;
  const float h1 = row.share, h0 = 1.0f - h1;
  for (int64_t j = 0; j < p.ow; ++j) {
    const Tap& column = p.columns[j];
    const int64_t left = column.first * p.c, right = column.second * p.c;
    const float w1 = column.share, w0 = 1.0f - w1;
    blend(Corners<T>{upper + left, upper + right, lower + left, lower + right, h0 * w0, h0 * w1, h1 * w0, h1 * w1}, p.c, p.mask, y + j * p.c);
  }
}

void pick_row(const ResizeProblem& p, const char* x, const Tap& row, char* y) {
  const int64_t pixel = p.c * size_of(p.type);
  for (int64_t j = 0; j < p.ow; ++j)
    std::memcpy(y + j * pixel, x + (row.first * p.w + p.columns[j].first) * pixel, size_t(pixel));
}

}  // namespace

void set_taps(const AxisMap& map, Tap* taps) {
  const float factor = factor_of(map);
  for (int64_t i = 0; i < map.out; ++i) taps[i] = tap_of(map, factor, i);
}

void resize(const ResizeProblem& p, const Parallel& parallel) {
  const int64_t item = size_of(p.type), image = p.h * p.w * p.c * item, line = p.ow * p.c * item;
  const int workers = workers_for(p.batch * p.oh * line, kBytesPerThread, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.batch * p.oh, workers, worker);
    for (int64_t r = mine.begin; r < mine.end; ++r) {
      const char* x = static_cast<const char*>(p.x) + r / p.oh * image;
      char* y = static_cast<char*>(p.y) + r * line;
      const Tap& row = p.rows[r % p.oh];
      if (!p.blends) pick_row(p, x, row, y);
      else if (p.type == DType::s8) blend_row(p, reinterpret_cast<const int8_t*>(x), row, reinterpret_cast<int8_t*>(y));
      else blend_row(p, reinterpret_cast<const float*>(x), row, reinterpret_cast<float*>(y));
    }
  });
}

}  // namespace qk
