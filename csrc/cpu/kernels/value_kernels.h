// The kernels of steps that compute in float32, each value read as it is or from int8: one source for every vector type V.
#pragma once
#include "attention.h"
#include "attention_s8.h"
#include "average.h"
#include "elementwise.h"
#include "group_norm.h"
#include "layer_norm.h"
#include "reduce.h"
#include "softmax.h"

#define QK_INSTANTIATE_VALUE_KERNELS(suffix, V)                                                                     \
  namespace qk {                                                                                                    \
  void unary_##suffix(const UnaryProblem& p, int64_t begin, int64_t end) { unary<V>(p, begin, end); }               \
  void binary_##suffix(const BinaryRows& r) { binary<V>(r); }                                                       \
  void layer_norm_##suffix(const LayerNormProblem& p, int64_t begin, int64_t end, float* memory) {                  \
    layer_norm<V>(p, begin, end, memory);                                                                           \
  }                                                                                                                 \
  void group_norm_##suffix(const GroupNormProblem& p, int64_t image, int64_t begin, int64_t end, float* memory) {   \
    group_norm<V>(p, image, begin, end, memory);                                                                    \
  }                                                                                                                 \
  void softmax_##suffix(const SoftmaxProblem& p, int64_t begin, int64_t end, float* memory) {                       \
    softmax<V>(p, begin, end, memory);                                                                              \
  }                                                                                                                 \
  void reduce_##suffix(const ReduceProblem& p, int64_t outer, int64_t begin, int64_t end, float* memory) {          \
    reduce<V>(p, outer, begin, end, memory);                                                                        \
  }                                                                                                                 \
  void average_##suffix(const AveragePoolProblem& p, int64_t image, int64_t row) { average<V>(p, image, row); }     \
  void pack_head_##suffix(const AttentionProblem& p, int64_t image, int64_t kv_head, const HeadMemory& m) {         \
    pack_head<V>(p, image, kv_head, m);                                                                             \
  }                                                                                                                 \
  void attend_##suffix(const AttentionProblem& p, int64_t image, int64_t head, int64_t begin, int64_t rows,         \
                       const HeadMemory& m) {                                                                       \
    attend<V>(p, image, head, begin, rows, m);                                                                      \
  }                                                                                                                 \
  void pack_head_s8_##suffix(const AttentionProblem& p, int64_t image, int64_t kv_head, const HeadBytes& m) {       \
    pack_head_s8<V>(p, image, kv_head, m);                                                                          \
  }                                                                                                                 \
  void queries_s8_##suffix(const AttentionProblem& p, int64_t image, int64_t head, int64_t begin, int64_t rows,     \
                           int8_t mask, const HeadBytes& m) {                                                       \
    queries_s8<V>(p, image, head, begin, rows, mask, m);                                                            \
  }                                                                                                                 \
  void weigh_s8_##suffix(const AttentionProblem& p, int64_t begin, int64_t rows, int8_t mask, const HeadBytes& m) { \
    weigh_s8<V>(p, begin, rows, mask, m);                                                                           \
  }                                                                                                                 \
  void store_s8_##suffix(const AttentionProblem& p, int64_t image, int64_t head, int64_t begin, int64_t rows,       \
                         const HeadBytes& m) {                                                                      \
    store_s8<V>(p, image, head, begin, rows, m);                                                                    \
  }                                                                                                                 \
  }
