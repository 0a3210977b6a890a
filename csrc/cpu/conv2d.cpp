// The way of a convolution, as its plan (conv_plan.h) says:
//   1. dynamic scales: one an image                                                  conv_image.cpp
//   2. x -> int8 NHWC with its border written out; skipped where x already is that   conv_image.cpp
//   3. the path: a GEMM over output pixels, depthwise, or Winograd                   conv_gemm.cpp, conv_depthwise.cpp,
//                                                                                    conv_winograd.cpp
//   4. y's own border, where the step after wants one                                conv_image.cpp
#include "conv2d.h"

#include <algorithm>

#include "conv_steps.h"

namespace qk {
namespace {

// Images [first, first + count) as a problem of their own.
Conv2dProblem slice(const Conv2dProblem& p, int64_t first, int64_t count) {
  Conv2dProblem part = p;
  const int64_t pixels = p.oh() * p.ow(), rows = first * pixels;
  part.batch = count;
  part.x = pixel(p, first, 0, 0);
  part.y = static_cast<char*>(p.y) + first * p.y_image() * size_of(p.epilogue.out_type);
  Epilogue& e = part.epilogue;
  if (e.residual) e.residual = static_cast<const char*>(e.residual) + rows * e.residual_stride * size_of(e.residual_type);
  if (p.range == Range::given && e.rows_per_scale == pixels) {
    e.x_scale += first;
    e.x_zero += first;
  }
  return part;
}

Scales scales_of(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const Parallel& parallel, char* workspace) {
  const bool per_image = p.epilogue.rows_per_scale == p.oh() * p.ow();
  if (p.range == Range::given) return {p.epilogue.x_scale, p.epilogue.x_zero, per_image ? 1 : p.batch};
  float* scale = reinterpret_cast<float*>(workspace + part.scale);
  int32_t* zero = reinterpret_cast<int32_t*>(workspace + part.zero);
  find_scales(p, *plan.kernels, parallel, scale, zero);
  return {scale, zero, 1};
}

// The image that the path reads, from its first padded pixel on.
Image image_of(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const Scales& s, const Parallel& parallel, char* workspace) {
  const int64_t border = p.x_padded ? p.pad_top * p.x_strides[2] + p.pad_left * p.x_strides[3] : 0;
  const int8_t* data = static_cast<const int8_t*>(p.x) - border;
  if (plan.writes_image) {
    int8_t* image = reinterpret_cast<int8_t*>(workspace + part.image);
    write_image(p, plan, s, parallel, reinterpret_cast<int8_t*>(workspace + part.lines), image);
    data = image;
  }
  return {data, plan.image, plan.row, p.c * plan.repeat};
}

// All images of p together.
void convolve(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const int16_t* u, const Parallel& parallel, char* workspace) {
  const Scales scales = scales_of(p, plan, part, parallel, workspace);
  const Image x = image_of(p, plan, part, scales, parallel, workspace);
  if (plan.winograd()) convolve_winograd(p, plan, part, x, scales, parallel, u, workspace);
  else (plan.depthwise() ? convolve_depthwise : convolve_gemm)(p, plan, part, x, scales, parallel, workspace);
  if (p.y_border) write_border(p, parallel);
}

// Images [first, first + count), as many at a time as the first part has.
void run(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart* parts, int64_t first, int64_t count, const int16_t* u,
         const Parallel& parallel, char* workspace) {
  for (int64_t done = 0, images; done < count; done += images) {
    images = std::min(parts[0].images, count - done);
    convolve(slice(p, first + done, images), plan, parts[images != parts[0].images], u, parallel, workspace);
  }
}

}  // namespace

void conv2d(const Conv2dProblem& p, const ConvPlan& plan, const Parallel& parallel, void* workspace) {
  char* memory = static_cast<char*>(workspace);
  const int64_t together = plan.each * plan.threads;
  const int16_t* u = p.winograd;
  if (plan.weight_bytes) {
    transform_weight(p, plan, parallel, reinterpret_cast<int16_t*>(memory));
    u = reinterpret_cast<const int16_t*>(memory);
    memory += plan.weight_bytes;
  }
  if (plan.each)
    parallel(plan.threads, [&](int64_t i) { run(p, plan, plan.alone, i * plan.each, plan.each, u, Parallel{}, memory + i * plan.bytes_each); });
  run(p, plan, plan.shared, together, p.batch - together, u, parallel, memory);
}

}  // namespace qk
