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
  if (map.in == map.out) return {i, i, 0.0f};
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
struct Corners {
  const char* at[4];
  float weight[4];
};

void blend(const Corners& k, int64_t c, int8_t, float* y) {
  const float *a = reinterpret_cast<const float*>(k.at[0]), *b = reinterpret_cast<const float*>(k.at[1]);
  const float *d = reinterpret_cast<const float*>(k.at[2]), *e = reinterpret_cast<const float*>(k.at[3]);
  for (int64_t i = 0; i < c; ++i) y[i] = k.weight[0] * a[i] + k.weight[1] * b[i] + k.weight[2] * d[i] + k.weight[3] * e[i];
}

void blend(const Corners& k, int64_t c, int8_t mask, int8_t* y) {
  constexpr float kRound = 0x1.8p23f;  // added and taken away again, it leaves an integer, halves to even
  const auto value = [&](int corner, int64_t i) { return k.weight[corner] * float(int8_t(k.at[corner][i] ^ mask)); };
  for (int64_t i = 0; i < c; ++i) {
    const float v = value(0, i) + value(1, i) + value(2, i) + value(3, i);
    y[i] = int8_t(std::clamp(int32_t((v + kRound) - kRound), -128, 127)) ^ mask;
  }
}

template <class T>
void blend_row(const ResizeProblem& p, const char* x, const Tap& row, T* y) {
  const int64_t pixel = p.c * int64_t(sizeof(T)), line = p.w * pixel;
  for (int64_t j = 0; j < p.ow; ++j) {
    const Tap& column = p.columns[j];
    const char *upper = x + row.first * line, *lower = x + row.second * line;
    const float h1 = row.share, h0 = 1.0f - h1, w1 = column.share, w0 = 1.0f - w1;
    blend({{upper + column.first * pixel, upper + column.second * pixel, lower + column.first * pixel, lower + column.second * pixel},
           {h0 * w0, h0 * w1, h1 * w0, h1 * w1}}, p.c, p.mask, y + j * p.c);
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
      else if (p.type == DType::s8) blend_row(p, x, row, reinterpret_cast<int8_t*>(y));
      else blend_row(p, x, row, reinterpret_cast<float*>(y));
    }
  });
}

}  // namespace qk
