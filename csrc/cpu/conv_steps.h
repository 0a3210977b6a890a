// The steps of a convolution, and what one hands the next; conv2d.cpp is their order.
#pragma once
#include "conv_plan.h"
#include "parallel.h"

namespace qk {

struct Scales {
  const float* scale;
  const int32_t* zero;
  int64_t images_per_scale;  // batch or 1
};

// What the path reads: int8, padding included, with every pixel's channels together.
struct Image {
  const int8_t* data;
  int64_t image, row, pixel;  // bytes from one to the next
};

// The first byte of x at a pixel.
inline const char* pixel(const Conv2dProblem& p, int64_t image, int64_t h, int64_t w) {
  return static_cast<const char*>(p.x) + (image * p.x_strides[0] + h * p.x_strides[2] + w * p.x_strides[3]) * size_of(p.x_type);
}

// The first byte of a group's window under an output pixel.
inline const int8_t* window(const Conv2dProblem& p, const Image& x, int64_t image, int64_t y, int64_t column, int64_t channel) {
  return x.data + image * x.image + y * p.stride_h * x.row + column * p.stride_w * x.pixel + channel;
}

// A line of all images' outputs, NHWC.
inline char* line_of(const Conv2dProblem& p, int64_t line) {
  return static_cast<char*>(p.y) + (line / p.oh() * p.y_image() + line % p.oh() * p.y_row()) * size_of(p.epilogue.out_type);
}

// conv_image.cpp: what the path reads, dynamic scales found and x written as int8 where it does not lie so; a staged block
// [rows][stride] of outputs from channel `first` on, to its planes; y's own border.
struct Prepared {
  Scales scales;
  Image image;
};
Prepared prepare(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const Parallel& parallel, char* workspace);
void scatter(const Conv2dProblem& p, const Kernels& k, int64_t m0, int64_t rows, int64_t first, int64_t channels, const char* block,
             int64_t stride);
void write_border(const Conv2dProblem& p, const Parallel& parallel);

// conv_gemm.cpp, conv_depthwise.cpp, conv_winograd.cpp: the paths
void convolve_gemm(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const Image& x, const Scales& s, const Parallel& parallel,
                   char* workspace);
void convolve_depthwise(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const Image& x, const Scales& s,
                        const Parallel& parallel, char* workspace);
void convolve_winograd(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const Image& x, const Scales& s, const Parallel& parallel,
                       const int16_t* u, char* workspace);

}  // namespace qk
