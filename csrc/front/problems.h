// Problem structs from the caller's arrays. Every check that torch's and NumPy's operators make is made here; what is
// left to them is the memory of the outputs (`c`, `y`, `q`), and copies of what does not lie as a driver reads it.
#pragma once
#include <span>

#include "../cpu/pool.h"
#include "../cpu/quantize.h"
#include "operands.h"

namespace qk {

// ---- linear: x [..., K] by a packed weight [N, K]

bool rows_lie(const Array& x);           // rows whose values are together: else the front end copies x
GemmProblem linear_problem(const Operands& o, const EpilogueArgs& args);
WeightOnlyProblem weight_only_problem(const Operands& o, const EpilogueArgs& args);
Sizes with_last(const Array& x, int64_t last);

// ---- conv2d: x [N, C, H, W] by a packed weight [OC, C/groups, KH, KW]

struct Window {
  std::span<const int64_t> kernel, stride, padding, dilation;  // padding: left, right, top, bottom; of a pool rows, columns
};
Conv2dProblem conv2d_problem(const Operands& o, const Window& window, int64_t groups, const char* padding_mode, const EpilogueArgs& args);

// ---- pooling: x int8 [N, C, H, W], or float32 for the mean

Pool2dProblem max_pool2d_problem(const Array& x, const Window& window, bool ceil_mode);
// The mean of neighbouring values: the window has no dilation.
Pool2dProblem avg_pool2d_problem(const Array& x, const Window& window, bool ceil_mode, int64_t zero_point, bool count_include_pad);
MeanProblem mean_pool2d_problem(const Array& x);

// ---- rows of the last axis

LookupProblem lookup_problem(const Array& x, const Array& table);
QuantizeProblem quantize_problem(const Array& x, const Array& scale, const Array& zero_point);
QuantizeProblem quantize_dynamic_problem(const Array& x, bool per_row, bool symmetric);  // scale and zero are outputs too
DequantizeProblem dequantize_problem(const Array& q, const Array& scale, const Array& zero_point, const Type& dtype);
LayerNormProblem layer_norm_problem(const Array& x, const Array& weight, const Array& bias, double epsilon, const EpilogueArgs& args);
AttentionProblem attention_problem(const Array& x, int64_t heads, double exponent, const EpilogueArgs& args);

// ---- weights

struct WeightSize {
  int64_t oc, c, kh, kw, groups;
  PackedLayout layout() const { return weight_layout(oc, c, kh, kw, groups); }
};
WeightSize weight_size(std::span<const int64_t> size, int64_t groups);
WeightSize weight_to_pack(const Array& weight, int64_t groups);
WeightSize weight_to_unpack(const Array& packed, std::span<const int64_t> size, int64_t groups);
void check_packed_range(bool in_range);  // what packing has found

}  // namespace qk
