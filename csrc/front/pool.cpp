#include "../core/padding.h"
#include "extents.h"
#include "problems.h"

namespace qk {
namespace {

Pool2dProblem pool_problem(const Array& x, const Window& window, bool ceil_mode, bool average) {
  check_type(x.type.element == Element::s8, "x is ", x.type.name, " ", shown(x), "; it must be int8");
  check(x.axes == 4, "x is ", shown(x), "; it must have the four axes of images, N, C, H and W");
  check_extents("kernel_size", window.kernel, 2, 1);
  check_extents("stride", window.stride, 2, 1);
  check_extents("padding", window.padding, 2, 0);
  check_extents("dilation", window.dilation, 2, 1);
  const int64_t *kernel = window.kernel.data(), *padding = window.padding.data();
  check(padding[0] * 2 <= kernel[0] && padding[1] * 2 <= kernel[1], "padding ", padding[0], ",", padding[1], " is more than half of the kernel ",
        kernel[0], ",", kernel[1]);
  Pool2dProblem p;
  p.average = average;
  p.batch = x.sizes[0], p.c = x.sizes[1], p.h = x.sizes[2], p.w = x.sizes[3];
  check(p.c >= 1 && p.h >= 1 && p.w >= 1, "x is ", shown(x), "; only the batch may be empty");
  check(!average || kernel[0] * kernel[1] <= kMaxWindow, "kernel_size ", kernel[0], "x", kernel[1], " averages more than ", kMaxWindow, " values");
  p.kh = kernel[0], p.kw = kernel[1], p.stride_h = window.stride[0], p.stride_w = window.stride[1];
  p.pad_h = padding[0], p.pad_w = padding[1], p.dilation_h = window.dilation[0], p.dilation_w = window.dilation[1];
  check(p.h + 2 * p.pad_h >= p.dilation_h * (p.kh - 1) + 1 && p.w + 2 * p.pad_w >= p.dilation_w * (p.kw - 1) + 1,
        "the kernel is larger than the padded input, ", p.h + 2 * p.pad_h, "x", p.w + 2 * p.pad_w);
  p.oh = pooled(p.h, p.kh, p.stride_h, p.pad_h, p.dilation_h, ceil_mode);
  p.ow = pooled(p.w, p.kw, p.stride_w, p.pad_w, p.dilation_w, ceil_mode);
  p.x = x.data;
  return p;
}

}  // namespace

Pool2dProblem max_pool2d_problem(const Array& x, const Window& window, bool ceil_mode) { return pool_problem(x, window, ceil_mode, false); }

Pool2dProblem avg_pool2d_problem(const Array& x, const Window& window, bool ceil_mode, int64_t zero_point, bool count_include_pad) {
  static constexpr int64_t neighbours[2] = {1, 1};
  Pool2dProblem p = pool_problem(x, {window.kernel, window.stride, window.padding, neighbours}, ceil_mode, true);
  p.x_zero = check_zero_point("zero_point", zero_point);
  p.count_include_pad = count_include_pad;
  return p;
}

MeanProblem mean_pool2d_problem(const Array& x) {
  check_type(x.type.element == Element::f32, "x is ", x.type.name, " ", shown(x), "; it must be float32");
  check(x.axes == 4, "x is ", shown(x), "; it must have the four axes of images, N, C, H and W");
  MeanProblem p;
  p.batch = x.sizes[0], p.c = x.sizes[1], p.h = x.sizes[2], p.w = x.sizes[3];
  check(p.c >= 1 && p.h >= 1 && p.w >= 1, "x is ", shown(x), "; only the batch may be empty");
  p.x = x.as<float>();
  for (int i = 0; i < 4; ++i) p.x_strides[i] = x.strides[i];
  return p;
}

}  // namespace qk
