#include "../core/padding.h"
#include "extents.h"
#include "problems.h"

namespace qk {
namespace {

PadMode pad_mode_named(const char* name) {
  std::string known;
  for (int i = 0; kPadModeNames[i]; ++i) {
    if (std::string_view(name) == kPadModeNames[i]) return PadMode(i);
    known += (i ? ", " : "") + std::string(kPadModeNames[i]);
  }
  refuse("padding_mode='", name, "' is unknown; choose one of ", known);
}

// Sizes and geometry, without memory.
Conv2dProblem geometry(const Array& x, int64_t oc, const Window& window, int64_t groups, const char* padding_mode) {
  check(x.axes == 4, "x is ", shown(x), "; it must have the four axes of images, N, C, H and W");
  check_extents("kernel_size", window.kernel, 2, 1);
  check_extents("stride", window.stride, 2, 1);
  check_extents("dilation", window.dilation, 2, 1);
  check_extents("padding", window.padding, 4, 0);
  Conv2dProblem p;
  p.batch = x.sizes[0], p.c = x.sizes[1], p.h = x.sizes[2], p.w = x.sizes[3];
  p.oc = oc, p.kh = window.kernel[0], p.kw = window.kernel[1], p.groups = groups;
  p.stride_h = window.stride[0], p.stride_w = window.stride[1];
  p.dilation_h = window.dilation[0], p.dilation_w = window.dilation[1];
  p.pad_left = window.padding[0], p.pad_right = window.padding[1], p.pad_top = window.padding[2], p.pad_bottom = window.padding[3];
  p.pad_mode = pad_mode_named(padding_mode);
  return p;
}

void check_sizes(const Conv2dProblem& p, const Array& x, const char* padding_mode) {
  check(p.c >= 1 && p.h >= 1 && p.w >= 1 && p.oc >= 1, "x is ", shown(x), " and there are ", p.oc, " output channels; only the batch may be empty");
  check(p.groups >= 1 && p.c % p.groups == 0 && p.oc % p.groups == 0, "groups=", p.groups, " must divide the ", p.c, " input and ", p.oc,
        " output channels");
  const double k = double(p.c / p.groups) * double(p.kh) * double(p.kw);
  check(k <= double(kMaxK), "K=C/groups*KH*KW=", int64_t(std::min(k, 0x1p62)), " is above the limit of ", kMaxK);
  const int64_t kh = p.dilation_h * (p.kh - 1) + 1, kw = p.dilation_w * (p.kw - 1) + 1;
  check(p.padded_h() >= kh && p.padded_w() >= kw, "the kernel, dilated ", kh, "x", kw, ", is larger than the padded input, ", p.padded_h(), "x",
        p.padded_w());
  check(fits(p.pad_mode, std::max(p.pad_top, p.pad_bottom), p.h) && fits(p.pad_mode, std::max(p.pad_left, p.pad_right), p.w), padding_mode,
        " padding ", p.pad_left, ",", p.pad_right, ",", p.pad_top, ",", p.pad_bottom, " does not fit an input of ", p.h, "x", p.w);
  check(double(p.batch) * double(p.padded_h()) * double(p.padded_w()) * double(std::max(p.c, p.oc)) < 0x1p60, "the padded input, ", p.batch, " of ",
        p.padded_h(), "x", p.padded_w(), ", is too large");
}

}  // namespace

Conv2dProblem conv2d_problem(const Operands& o, const Window& window, int64_t groups, const char* padding_mode, const EpilogueArgs& args) {
  const Array& x = o.x;
  Conv2dProblem p = geometry(x, o.weight_scale.count(), window, groups, padding_mode);
  check_sizes(p, x, padding_mode);
  p.x_type = supported("x", x.type);
  p.x = x.data;
  for (int i = 0; i < 4; ++i) p.x_strides[i] = x.strides[i];
  p.weight = packed_of(o.weight, weight_layout(p.oc, p.c / groups, p.kh, p.kw, groups), x);
  p.epilogue = epilogue_of(o, args);
  const int64_t pixels = p.oh() * p.ow();
  p.range = set_input_scales(o, p.batch, "image", pixels, p.batch * pixels, p.epilogue);
  p.epilogue.residual_stride = p.oc;
  if (args.residual) {
    const bool images = args.residual->axes == 4;
    set_residual(*args.residual, x, {p.batch, p.oc, p.oh(), p.ow()}, images && lies_as_pixels(*args.residual), p.epilogue);
  }
  return p;
}

}  // namespace qk
