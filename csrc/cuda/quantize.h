// Float to int8 on a GPU, and back.
#pragma once
#include "device.h"
#include "../core/problem.h"

namespace qk::cuda {

// Scales and zero points: read where the range is given, else found in x and written.
struct Scales {
  Range range = Range::given;
  float* scale = nullptr;
  int32_t* zero = nullptr;
  uint32_t* extremes = nullptr;  // two words a scale, where rows share a range that is found: workspace
};

// x [rows, cols] -> q, one scale for `rows_per_scale` rows. int8 x is copied as it is.
struct QuantizeRows {
  int64_t rows = 0, cols = 0;
  const void* x = nullptr;
  DType x_type = DType::f32;
  int64_t x_stride = 0;        // elements between rows
  int64_t rows_per_scale = 1;
  Scales scales;
  int8_t* q = nullptr;
  int64_t q_stride = 0;        // bytes between rows
};

int quantize_rows(const QuantizeRows& p, Stream stream);

// Planes to pixels: x [batch, c, pixels] -> q [batch, pixels, c]; one scale for all, or one an image.
struct QuantizePlanes {
  int64_t batch = 0, c = 0, pixels = 0;
  const void* x = nullptr;
  DType x_type = DType::f32;
  bool scale_each = false;
  Scales scales;
  int8_t* q = nullptr;
};

int quantize_planes(const QuantizePlanes& p, Stream stream);

// y = float(q - zero) * scale, all contiguous.
struct DequantizeRows {
  int64_t rows = 0, cols = 0, rows_per_scale = 1;
  const int8_t* q = nullptr;
  const float* scale = nullptr;
  const int32_t* zero = nullptr;
  DType y_type = DType::f32;
  void* y = nullptr;
};

int dequantize_rows(const DequantizeRows& p, Stream stream);

}  // namespace qk::cuda
