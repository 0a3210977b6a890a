#include "launch.cuh"
#include "planes.cuh"
#include "quantize.cuh"
#include "../core/layout.h"

namespace qk::cuda {
namespace {

constexpr int64_t kWide = 8;              // values that a thread takes together, where addresses allow it
constexpr int64_t kMostParts = 1024;      // blocks that share the search for one range
constexpr int64_t kValuesEach = 1 << 15;  // that each of them looks at, at least
constexpr int kEndsBytes = kQuantizeThreads / 32 * 8;

// Whether kWide values at p, and every multiple of kWide further, can be touched together.
bool is_wide(const void* p, DType type) {
  const int64_t bytes = kWide * size_of(type);
  return reinterpret_cast<uintptr_t>(p) % uintptr_t(bytes < 16 ? bytes : 16) == 0;
}

template <class V>
int threads_for(int64_t cols) {
  const int64_t vectors = ceil_div(cols, V::width);
  return int(vectors < kQuantizeThreads ? round_up(vectors, 32) : kQuantizeThreads);
}

template <class V>
int find_extremes(const QuantizeRows& p, Stream stream) {
  const int64_t scales = ceil_div(p.rows, p.rows_per_scale);
  int64_t parts = ceil_div(p.rows_per_scale * p.cols, kValuesEach);
  parts = parts < kMostParts ? parts : kMostParts;
  const int64_t rows_each = ceil_div(p.rows_per_scale, parts);
  if (const int error = fill_zero(p.scales.extremes, scales * 8, stream)) return error;
  const Grid grid{scales, ceil_div(p.rows_per_scale, rows_each)};
  return launch<extremes_kernel<V>>(grid, threads_for<V>(p.cols), kEndsBytes, stream, p, rows_each);
}

int find_extremes(const QuantizeRows& p, Stream stream) {
  const bool wide = (p.cols | p.x_stride) % kWide == 0 && is_wide(p.x, p.x_type);
  return wide ? find_extremes<Lanes<kWide>>(p, stream) : find_extremes<Lanes<1>>(p, stream);
}

}  // namespace

int quantize_rows(const QuantizeRows& p, Stream stream) {
  if (p.rows == 0 || p.cols == 0) return 0;
  if (p.scales.extremes)
    if (const int error = find_extremes(p, stream)) return error;
  const bool wide = (p.cols | p.x_stride | p.q_stride) % kWide == 0 && is_wide(p.x, p.x_type) && is_wide(p.q, DType::s8);
  if (wide) return launch<quantize_kernel<Lanes<kWide>>>({p.rows}, threads_for<Lanes<kWide>>(p.cols), kEndsBytes, stream, p);
  return launch<quantize_kernel<Lanes<1>>>({p.rows}, threads_for<Lanes<1>>(p.cols), kEndsBytes, stream, p);
}

int quantize_planes(const QuantizePlanes& p, Stream stream) {
  if (p.batch == 0 || p.pixels == 0) return 0;
  if (p.scales.extremes) {
    QuantizeRows rows;
    rows.rows = p.batch * p.c, rows.cols = rows.x_stride = p.pixels, rows.rows_per_scale = p.c;
    rows.x = p.x, rows.x_type = p.x_type, rows.scales = p.scales;
    if (const int error = find_extremes(rows, stream)) return error;
  }
  const Divisor tiles(ceil_div(p.pixels, kTurn));
  const Grid grid{p.batch * tiles.divisor, ceil_div(p.c, kTurn)};
  return launch<planes_kernel>(grid, kTurnThreads, kTurn * kTurnPitch * 4, stream, p, tiles);
}

int dequantize_rows(const DequantizeRows& p, Stream stream) {
  if (p.rows == 0 || p.cols == 0) return 0;
  if (p.cols % kWide == 0 && is_wide(p.q, DType::s8) && is_wide(p.y, p.y_type))
    return launch<dequantize_kernel<Lanes<kWide>>>({p.rows}, threads_for<Lanes<kWide>>(p.cols), 0, stream, p);
  return launch<dequantize_kernel<Lanes<1>>>({p.rows}, threads_for<Lanes<1>>(p.cols), 0, stream, p);
}

}  // namespace qk::cuda
