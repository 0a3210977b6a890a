#include "dispatch.h"

namespace qk {

#define QK_KERNELS(isa, gemm, mr, x_mask, piece, piece_rows, x_kb, suffix)                                                  \
  void gemm(const GemmBlock&);                                                                       \
  int64_t gemm##_peak(int64_t);                                                                      \
  void weight_only_##suffix(const WeightOnlyBlock&);                                                 \
  void depthwise_##suffix(const DepthwiseBlock&);                                                    \
  void winograd_weights_##suffix(const int8_t*, int64_t, int64_t, int64_t, int16_t*);                \
  void winograd_input_##suffix(const WinogradInput&);                                                \
  void winograd_products_##suffix(const WinogradProducts&);                                          \
  void winograd_output_##suffix(const WinogradOutput&);                                              \
  void quantize_##suffix(const void*, DType, int64_t, float, int32_t, bool, int8_t*);                \
  Extremes extremes_##suffix(const void*, DType, int64_t);                                           \
  void to_f32_##suffix(const void*, DType, int64_t, float*);                                         \
  void dequantize_##suffix(const int8_t*, int64_t, float, int32_t, DType, void*);                    \
  void gather_##suffix(const GatherRun&);                                                            \
  void interleave_##suffix(const PlanesToPixels&);                                                   \
  void deinterleave_##suffix(const PixelsToPlanes&);                                                 \
  void pool_##suffix(const Pool2dProblem&, int64_t, int64_t);                                        \
  void lookup_##suffix(const int8_t*, int64_t, const int8_t*, int8_t*);                              \
  void unary_##suffix(const UnaryProblem&, int64_t, int64_t);                                        \
  void binary_##suffix(const BinaryRows&);                                                           \
  void layer_norm_##suffix(const LayerNormProblem&, int64_t, int64_t, float*);                       \
  void group_norm_##suffix(const GroupNormProblem&, int64_t, int64_t, int64_t, float*);              \
  void softmax_##suffix(const SoftmaxProblem&, int64_t, int64_t, float*);                            \
  void reduce_##suffix(const ReduceProblem&, int64_t, int64_t, int64_t, float*);                     \
  void average_##suffix(const AveragePoolProblem&, int64_t, int64_t);                                \
  void pack_head_##suffix(const AttentionProblem&, int64_t, int64_t, const HeadMemory&);             \
  void attend_##suffix(const AttentionProblem&, int64_t, int64_t, int64_t, int64_t, const HeadMemory&);                \
  void pack_head_s8_##suffix(const AttentionProblem&, int64_t, int64_t, const HeadBytes&);           \
  void queries_s8_##suffix(const AttentionProblem&, int64_t, int64_t, int64_t, int64_t, int8_t, const HeadBytes&);     \
  void weigh_s8_##suffix(const AttentionProblem&, int64_t, int64_t, int8_t, const HeadBytes&);       \
  void store_s8_##suffix(const AttentionProblem&, int64_t, int64_t, int64_t, int64_t, const HeadBytes&);
#include "kernels.inc"
#undef QK_KERNELS

namespace {

constexpr int64_t kFewRows = 8;  // up to here AMX tiles are mostly empty

constexpr Kernels kTable[] = {
#define QK_KERNELS(isa, gemm, mr, x_mask, piece, piece_rows, x_kb, suffix)                                                      \
  {Isa::isa, #gemm, mr, x_mask, piece, piece_rows, x_kb * 1024, gemm, gemm##_peak,                                     \
   weight_only_##suffix, depthwise_##suffix, winograd_weights_##suffix, winograd_input_##suffix,          \
   winograd_products_##suffix, winograd_output_##suffix, quantize_##suffix, extremes_##suffix, to_f32_##suffix,      \
   dequantize_##suffix, gather_##suffix, interleave_##suffix, deinterleave_##suffix, pool_##suffix, \
   lookup_##suffix, unary_##suffix, binary_##suffix, layer_norm_##suffix, group_norm_##suffix, softmax_##suffix,   \
   reduce_##suffix, average_##suffix, pack_head_##suffix, attend_##suffix, pack_head_s8_##suffix,       \
   queries_s8_##suffix, weigh_s8_##suffix, store_s8_##suffix},
#include "kernels.inc"
#undef QK_KERNELS
};

}  // namespace

const Kernels& kernels_of(Isa isa) {
  for (const Kernels& k : kTable)
    if (k.isa == isa) return k;
  return kTable[0];
}

const Kernels& kernels_for(Isa isa, int64_t m) {
  return kernels_of(isa == Isa::amx && m <= kFewRows ? Isa::avx512vnni : isa);
}

}  // namespace qk
