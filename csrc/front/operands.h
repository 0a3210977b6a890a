// What the problems of linear layers and convolutions are built from, and the checks that they share.
#pragma once
#include <optional>
#include <vector>

#include "../core/layout.h"
#include "array.h"

namespace qk {

using Sizes = std::vector<int64_t>;

struct Operands {
  Array x, weight, weight_scale;
  std::optional<Array> bias, input_scale, input_zero_point;
  bool symmetric = true;                 // where no scale is given
};

struct EpilogueArgs {
  std::optional<Array> residual;
  double residual_scale = 1.0;
  int64_t residual_zero_point = 0;
  std::optional<double> clamp_min, clamp_max;
  std::optional<Type> out_dtype;         // none: x's own, float32 for int8 x
  double output_scale = 1.0;
  int64_t output_zero_point = 0;
};

void check_beside(const char* what, const Array& a, const Array& x);
void check_scale(const char* what, double value);
int32_t check_zero_point(const char* what, int64_t value);

// `count` scales or zero points beside x; their values are looked at where that does not wait for a device.
const float* scales_of(const char* what, const Array& a, int64_t count, const Array& x);
const int32_t* zero_points_of(const char* what, const Array& a, int64_t count, const Array& x);
// float32 [n], beside x.
const float* channels_of(const char* what, const Array& a, int64_t n, const Array& x);
const int8_t* packed_of(const Array& packed, const PackedLayout& layout, const Array& x);

// The output's type and scale; refuses a clamp and a residual where the kernel takes none.
Epilogue output_only(const EpilogueArgs& args);
// All but the residual's memory and the scales of x.
Epilogue epilogue_of(const Operands& o, const EpilogueArgs& args);

// Scales of x: given, one or `count` (one a `each`, which has `rows` of all), or found by the kernel.
Range set_input_scales(const Operands& o, int64_t count, const char* each, int64_t rows_each, int64_t rows, Epilogue& e);

// The residual, which has the output's `sizes`. Its memory is set where it `lies` as the kernel reads it; else the front end
// hands a copy.
void set_residual(const Array& residual, const Array& x, const Sizes& sizes, bool lies, Epilogue& e);

}  // namespace qk
