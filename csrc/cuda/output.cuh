// Where outputs go, and what their rows and channels are multiplied by: shared by every kernel that ends in the epilogue.
#pragma once
#include "index.h"
#include "lanes.cuh"

namespace qk::cuda {

// What every kernel with an epilogue is handed besides x.
struct GemmArgs {
  PackedLayout layout{};    // n and k of one group
  const int8_t* weight = nullptr;
  int64_t m = 0;
  void* c = nullptr;        // [m][groups * n]; or planes, [m / plane][groups * n][plane]
  int64_t c_stride = 0;     // elements between rows
  bool planes = false;
  bool vectors = false;     // four neighbouring values of C, residual and parameters may be touched together
  Divisor plane;            // rows that make a plane
  Raster raster{};
  int64_t splits = 1;       // of K; more than one leave their sums here, [splits][groups][m][n_padded], for split.cuh
  int32_t* sums = nullptr;
  Divisor scales;           // rows of C that share a scale
  Epilogue epilogue;
};

inline GemmArgs args_of(const GemmProblem& p) {
  GemmArgs g;
  g.layout = {1, p.n, p.k};
  g.weight = p.weight;
  g.m = p.m;
  g.c = p.c, g.c_stride = p.c_stride;
  g.epilogue = p.epilogue;
  g.epilogue.w_sum = g.layout.sums(p.weight, 0);
  return g;
}

namespace {

// The parameters of the group's channels at n_padded each, as Dequantizer wants them: at n each.
QK_DEVICE Epilogue epilogue_of_group(const GemmArgs& g) {
  Epilogue e = g.epilogue;
  e.w_sum += block_z() * (g.layout.n_padded() - g.layout.n);
  return e;
}

template <class V>
QK_DEVICE void use_row(Dequantizer<V>& dequantize, const GemmArgs& g, int64_t m) {
  const uint32_t i = g.scales.quotient(uint32_t(m));
  dequantize.use(global_load<float>(g.epilogue.x_scale + i), global_load<int32_t>(g.epilogue.x_zero + i));
}

QK_DEVICE int32_t* split_sums_at(const GemmArgs& g, int64_t split, int64_t m, int64_t n) {
  return g.sums + ((split * g.layout.groups + block_z()) * g.m + m) * g.layout.n_padded() + n;
}

QK_DEVICE char* output_at(const GemmArgs& g, int64_t m, int64_t n) {
  int64_t at = m * g.c_stride + n;
  if (g.planes) {
    const int64_t image = g.plane.quotient(uint32_t(m)), plane = g.plane.divisor;
    at = (image * g.layout.groups * g.layout.n + n) * plane + (m - image * plane);
  }
  return static_cast<char*>(g.c) + at * size_of(g.epilogue.out_type);
}

}  // namespace
}  // namespace qk::cuda
