// The kernels that only need lanes: one source for every vector type V, instantiated once per instruction set.
#pragma once
#include "attention.h"
#include "depthwise.h"
#include "elementwise.h"
#include "layer_norm.h"
#include "lookup.h"
#include "pixels.h"
#include "pool.h"
#include "rows.h"
#include "weight_only.h"

// The kernels of one instruction set, under the names that dispatch.cpp declares.
#define QK_INSTANTIATE_VECTOR_KERNELS(suffix, V)                                                                    \
  namespace qk {                                                                                                    \
  void weight_only_##suffix(const WeightOnlyBlock& g) { weight_only<V>(g); }                                        \
  void depthwise_##suffix(const DepthwiseBlock& d) { depthwise<V>(d); }                                               \
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
  }                                                                                                                 \
  void unary_##suffix(const UnaryProblem& p, int64_t begin, int64_t end) { unary<V>(p, begin, end); }               \
  void binary_##suffix(const BinaryRows& r) { binary<V>(r); }                                                       \
  void layer_norm_##suffix(const LayerNormProblem& p, int64_t begin, int64_t end) { layer_norm<V>(p, begin, end); } \
  void pack_head_##suffix(const AttentionProblem& p, int64_t image, int64_t head, const HeadMemory& m) {            \
    pack_head<V>(p, image, head, m);                                                                                \
  }                                                                                                                 \
  void attend_##suffix(const AttentionProblem& p, int64_t image, int64_t head, int64_t begin, int64_t rows,         \
                       const HeadMemory& m) {                                                                       \
    attend<V>(p, image, head, begin, rows, m);                                                                      \
  }                                                                                                                 \
  }
