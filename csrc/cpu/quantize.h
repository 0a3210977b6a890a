// Quantization by itself: rows of float to int8 and back.
#pragma once
#include "isa.h"
#include "parallel.h"
#include "../core/problem.h"

namespace qk {

// x [rows, cols] contiguous -> q; one scale and zero point a row, or one for all (rows_per_scale = rows).
struct QuantizeProblem {
  int64_t rows = 0, cols = 0;
  const void* x = nullptr;
  DType x_type = DType::f32;
  Range range = Range::given;
  int64_t rows_per_scale = 1;
  float* scale = nullptr;      // read where the range is given, else written
  int32_t* zero = nullptr;
  int8_t* q = nullptr;
};

void quantize(const QuantizeProblem& p, Isa isa, const Parallel& parallel);

struct DequantizeProblem {
  int64_t rows = 0, cols = 0, rows_per_scale = 1;
  const int8_t* q = nullptr;
  const float* scale = nullptr;
  const int32_t* zero = nullptr;
  DType y_type = DType::f32;
  void* y = nullptr;
};

void dequantize(const DequantizeProblem& p, Isa isa, const Parallel& parallel);

}  // namespace qk
