// The way of a convolution, as its plan (conv_plan.h) says:
//   1. what the path reads: dynamic scales found, one an image; x -> int8 NHWC with its border written out,
//      skipped where x already lies so                                               conv_image.cpp
//   2. the path: a GEMM over output pixels, depthwise, or Winograd                   conv_gemm.cpp, conv_depthwise.cpp,
//                                                                                    conv_winograd.cpp
//   3. y's own border, where the step after wants one                                conv_image.cpp
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

// All images of p together.
void convolve(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const int16_t* u, const Parallel& parallel, char* workspace) {
  const auto [scales, x] = prepare(p, plan, part, parallel, workspace);
  if (plan.winograd()) convolve_winograd(p, plan, part, x, scales, parallel, u, workspace);
  else (plan.depthwise() ? convolve_depthwise : convolve_gemm)(p, plan, part, x, scales, parallel, workspace);
  if (p.y_border) write_border(p, parallel);
}

// Images [first, first + count), as many at a time as the first part has.
void run(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart* parts, int64_t first, int64_t count, const int16_t* u,
         const Parallel& parallel, char* workspace) {
  for (int64_t done = 0, images; done < count; done += images) {
    images = std::min(parts[0].images, count - done);
    convolve(slice(p, first + done, images), plan, part_of(parts, images), u, parallel, workspace);
  }
}

}  // namespace

void conv2d(const Conv2dProblem& p, const ConvPlan& plan, const Parallel& parallel, void* workspace) {
  char* memory = static_cast<char*>(workspace);
  const int64_t alone = plan.each * plan.threads;
  const int16_t* u = p.winograd;
  if (plan.weight_bytes) {
    transform_weight(p, plan, parallel, reinterpret_cast<int16_t*>(memory));
    u = reinterpret_cast<const int16_t*>(memory);
    memory += plan.weight_bytes;
  }
  if (plan.each)
    parallel(plan.threads, [&](int64_t i) { run(p, plan, plan.alone, i * plan.each, plan.each, u, Parallel{}, memory + i * plan.bytes_each); });
  run(p, plan, plan.shared, alone, p.batch - alone, u, parallel, memory);
}

}  // namespace qk
