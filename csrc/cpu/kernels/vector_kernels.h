// The kernels beside the GEMM that only need lanes, and are no steps on float32 (value_kernels.h): one source for every vector type V, instantiated once per instruction set.
#pragma once
#include "depthwise.h"
#include "lookup.h"
#include "pixels.h"
#include "pool.h"
#include "rows.h"
#include "weight_only.h"
#include "winograd.h"

// The kernels of one instruction set, under the names that dispatch.cpp declares.
#define QK_INSTANTIATE_VECTOR_KERNELS(suffix, V)                                                                    \
  namespace qk {                                                                                                    \
  void weight_only_##suffix(const WeightOnlyBlock& g) { weight_only<V>(g); }                                        \
  void depthwise_##suffix(const DepthwiseBlock& d) { depthwise<V>(d); }                                               \
  void winograd_weights_##suffix(const int8_t* p, int64_t channels, int64_t row, int64_t point, int16_t* u) {       \
    winograd_weights(p, channels, row, point, u);                                                                   \
  }                                                                                                                 \
  void winograd_input_##suffix(const WinogradInput& in) { winograd_input<V>(in); }                                  \
  void winograd_products_##suffix(const WinogradProducts& g) { winograd_products<V>(g); }                           \
  void winograd_output_##suffix(const WinogradOutput& o) { winograd_output<V>(o); }                                 \
  void quantize_##suffix(const void* x, DType t, int64_t n, float inv_scale, int32_t zero, bool flip, int8_t* q) {  \
    quantize<V>(x, t, n, inv_scale, zero, flip, q);                                                                 \
  }                                                                                                                 \
  Extremes extremes_##suffix(const void* x, DType t, int64_t n) { return extremes<V>(x, t, n); }                    \
  void to_f32_##suffix(const void* x, DType t, int64_t n, float* y) { to_f32<V>(x, t, n, y); }                      \
  void dequantize_##suffix(const int8_t* q, int64_t n, float scale, int32_t zero, DType t, void* y) {               \
    dequantize_row<V>(q, n, scale, zero, t, y);                                                                     \
  }                                                                                                                 \
  void gather_##suffix(const GatherRun& g) { gather<V>(g); }                                                        \
  void interleave_##suffix(const PlanesToPixels& p) { interleave<V>(p); }                                           \
  void deinterleave_##suffix(const PixelsToPlanes& p) { deinterleave<V>(p); }                                       \
  void pool_##suffix(const Pool2dProblem& p, int64_t image, int64_t row) { pool<V>(p, image, row); }                \
  void lookup_##suffix(const int8_t* table, int64_t count, const int8_t* x, int8_t* y) {                            \
    lookup<V>(table, count, x, y);                                                                                  \
  }                                                                                                                   \
  }
