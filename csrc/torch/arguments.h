// From tensors to problem structs: the checks that the operators of all devices share.
#pragma once
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include "../core/layout.h"
#include "../core/padding.h"
#include "../core/problem.h"
#include "../cpu/quantize.h"
#include "checks.h"

namespace qk {

using torch::headeronly::MemoryFormat;
using MaybeTensor = std::optional<Tensor>;
using MaybeType = std::optional<ScalarType>;
using Ints = std::vector<int64_t>;

// Beside x, uninitialised. By the C function: torch::stable::empty looks the operator up by its name at every call.
inline Tensor empty_beside(const Tensor& x, const Ints& size, ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
  int64_t strides[64], step = 1, ndim = int64_t(size.size());
  const auto next = [&](int64_t axis) {
    strides[axis] = step;
    step *= std::max<int64_t>(size[size_t(axis)], 1);
  };
  if (format == MemoryFormat::ChannelsLast)
    for (int64_t axis : {1, 3, 2, 0}) next(axis);
  else
    for (int64_t axis = ndim; axis-- > 0;) next(axis);
  AtenTensorHandle tensor;
  const int32_t type = x.is_cpu() ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda();
  const int32_t index = x.is_cpu() ? 0 : x.get_device_index();
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(ndim, size.data(), strides, int32_t(dtype), type, index, &tensor));
  return Tensor(tensor);
}

inline Tensor as_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// As torch tells it: axes of size 1 may have any stride.
inline bool is_channels_last(const Tensor& x) {
  int64_t expected = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) == 1) continue;
    if (x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

// The output follows the input: channels-last in, channels-last out.
inline MemoryFormat format_like(const Tensor& x) {
  return !x.is_contiguous() && is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Ints with_last(const Tensor& x, int64_t last) {
  Ints size(x.sizes().begin(), x.sizes().end());
  size.back() = last;
  return size;
}

// ---- quantize, dequantize

inline int64_t rows_of(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  return rows;
}

// Scales of x seen as rows of its last axis: one for all, or one a row. Returns rows per scale.
inline int64_t rows_per_scale(const char* op, const Tensor& scale, int64_t rows) {
  const int64_t count = scale.numel();
  check(count == 1 || count == rows, op, "scale has ", count, " values; 1 or the number of rows, ", rows, ", is needed");
  return count == 1 ? std::max<int64_t>(rows, 1) : 1;
}

inline int64_t columns(const char* op, const Tensor& x) {
  check(x.dim() >= 1, op, "x has no axis; give it at least one");
  return x.size(x.dim() - 1);
}

inline QuantizeProblem quantize_problem(const char* op, const Tensor& x) {
  QuantizeProblem p;
  p.x_type = dtype_of(op, "x", x.scalar_type());
  check(p.x_type != DType::s8, op, "x is int8 already");
  p.cols = columns(op, x);
  p.rows = rows_of(x);
  p.x = x.const_data_ptr();
  return p;
}

// ---- weights

struct WeightSize {
  int64_t oc, c, kh, kw, groups;
};

inline WeightSize weight_size(const char* op, const Ints& size, int64_t groups) {
  check(size.size() == 2 || size.size() == 4, op, "weight has ", size.size(), " axes; 2 (linear) or 4 (conv2d) are supported");
  const WeightSize w{size[0], size[1], size.size() == 4 ? size[2] : 1, size.size() == 4 ? size[3] : 1, groups};
  check(groups >= 1 && w.oc % groups == 0, op, "groups=", groups, " does not divide the ", w.oc, " output channels");
  check(w.oc >= 1 && w.c * w.kh * w.kw >= 1, op, "weight is empty");
  check(w.c * w.kh * w.kw <= kMaxK, op, "K=", w.c * w.kh * w.kw, " is above the limit of ", kMaxK);
  return w;
}

inline const int8_t* check_packed(const char* op, const Tensor& packed, const PackedLayout& layout, const Tensor& x) {
  check_beside(op, "weight", packed, x);
  check(packed.scalar_type() == ScalarType::Char && packed.is_contiguous(), op, "weight must come from pack_weight");
  const int8_t* bytes = static_cast<const int8_t*>(packed.const_data_ptr());
  check(packed.is_cpu() ? layout.matches(bytes, packed.numel()) : packed.numel() == layout.bytes(), op, "weight holds ", packed.numel(), " bytes, which are not a packed weight of N=",
        layout.groups * layout.n, ", K=", layout.k, ", groups=", layout.groups, ", as the other arguments ask for");
  return bytes;
}

// ---- what linear and conv2d share

// Of an output where none was asked for.
inline ScalarType float_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Char ? ScalarType::Float : x.scalar_type();
}

struct EpilogueArgs {
  const MaybeTensor& residual;
  double residual_scale;
  int64_t residual_zero_point;
  std::optional<double> clamp_min, clamp_max;
  ScalarType out_dtype;
  double output_scale;
  int64_t output_zero_point;
};

inline void check_positive(const char* op, const char* what, double value) {
  check(is_scale(float(value)), op, what, " is ", value, "; scales and their inverses are finite and above 0");
}

inline Epilogue epilogue_of(const char* op, const Tensor& x, const Tensor& weight_scale, const MaybeTensor& bias,
                            const EpilogueArgs& args) {
  Epilogue e;
  const int64_t n = weight_scale.numel();
  check(weight_scale.dim() == 1, op, "weight_scale is ", shape(weight_scale), "; it must be [N]");
  e.w_scale = check_scales(op, "weight_scale", weight_scale, n, x);
  if (bias) {
    check_beside(op, "bias", *bias, x);
    check(bias->scalar_type() == ScalarType::Float && bias->is_contiguous() && bias->numel() == n, op, "bias is ",
          name(bias->scalar_type()), " ", shape(*bias), "; it must be contiguous float32 [", n, "]");
    e.bias = static_cast<const float*>(bias->const_data_ptr());
  }
  if (args.clamp_min) e.lo = float(*args.clamp_min);
  if (args.clamp_max) e.hi = float(*args.clamp_max);
  check(e.lo <= e.hi, op, "clamp_min=", e.lo, " is above clamp_max=", e.hi);
  e.out_type = dtype_of(op, "out_dtype", args.out_dtype);
  check_positive(op, "output_scale", args.output_scale);
  e.out_inv_scale = 1.0f / float(args.output_scale);
  e.out_zero = check_zero_point(op, "output_zero_point", args.output_zero_point);
  check_positive(op, "residual_scale", args.residual_scale);
  e.residual_scale = float(args.residual_scale);
  e.residual_zero = check_zero_point(op, "residual_zero_point", args.residual_zero_point);
  return e;
}

// The residual as rows of N values: contiguous for linear, channels-last for conv2d. `held` keeps a copy alive.
inline void set_residual(const char* op, const EpilogueArgs& args, const Tensor& y, MemoryFormat rows, Epilogue& e,
                  MaybeTensor& held) {
  if (!args.residual) return;
  const Tensor& r = *args.residual;
  check_beside(op, "residual", r, y);
  bool same = r.dim() == y.dim();
  for (int64_t i = 0; same && i < r.dim(); ++i) same = r.size(i) == y.size(i);
  check(same, op, "residual is ", shape(r), ", but the output is ", shape(y));
  held = torch::stable::contiguous(r, rows);
  e.residual = held->const_data_ptr();
  e.residual_type = dtype_of(op, "residual", r.scalar_type());
}

// Scales of the input: given (`count` allowed besides one), or found by the kernel.
inline Range set_input_scales(const char* op, const Tensor& x, const MaybeTensor& scale, const MaybeTensor& zero, bool symmetric,
                       int64_t count, const char* count_name, int64_t rows_each, int64_t rows, Epilogue& e) {
  check(bool(scale) == bool(zero), op, "input_scale and input_zero_point come together; only one was given");
  if (!scale) {
    check(x.scalar_type() != ScalarType::Char, op, "x is int8, so input_scale and input_zero_point are needed");
    return symmetric ? Range::dynamic_symmetric : Range::dynamic_asymmetric;
  }
  const int64_t given = scale->numel();
  check(given == 1 || given == count, op, "input_scale has ", given, " values; 1 or ", count, " (one a ", count_name,
        ") are needed");
  e.x_scale = check_scales(op, "input_scale", *scale, given, x);
  e.x_zero = check_zero_points(op, "input_zero_point", *zero, given, x);
  e.rows_per_scale = std::max<int64_t>(given == count && count != 1 ? rows_each : rows, 1);
  return Range::given;
}

// ---- linear

// x as rows whose values are together; copied only where they are not.
inline GemmProblem linear_problem(const char* op, Tensor& x, const Tensor& weight, const Tensor& weight_scale) {
  check(x.dim() >= 1, op, "x has no axis; it must be [..., K]");
  GemmProblem p;
  p.x_type = dtype_of(op, "x", x.scalar_type());
  p.k = x.size(x.dim() - 1);
  p.n = weight_scale.numel();
  check(p.k >= 1 && p.n >= 1, op, "x is ", shape(x), " and weight_scale has ", p.n, " values; K and N are at least 1");
  check(p.k <= kMaxK, op, "K=", p.k, " is above the limit of ", kMaxK);
  p.m = x.numel() / p.k;
  if (!(x.dim() == 2 && x.stride(1) == 1 && x.stride(0) >= p.k)) x = as_contiguous(x);
  p.x_stride = x.dim() == 2 ? x.stride(0) : p.k;
  p.x = x.const_data_ptr();
  const PackedLayout layout{1, p.n, p.k};
  p.weight = check_packed(op, weight, layout, x);
  return p;
}

inline void set_output(GemmProblem& p, Tensor& y) {
  p.c = y.mutable_data_ptr();
  p.c_stride = p.n;
  p.epilogue.residual_stride = p.n;
}

// ---- conv2d

inline PadMode pad_mode_of(const char* op, const std::string& mode) {
  if (mode == "zeros") return PadMode::zeros;
  if (mode == "reflect") return PadMode::reflect;
  if (mode == "replicate") return PadMode::replicate;
  if (mode == "circular") return PadMode::circular;
  fail(op, "padding_mode='", mode, "' is unknown; choose one of zeros, reflect, replicate, circular");
}

inline void check_extents(const char* op, const char* what, const Ints& v, size_t count, int64_t least) {
  check(v.size() == count, op, what, " holds ", v.size(), " integers; ", count, " are needed");
  for (int64_t i : v) check(i >= least && i <= kMaxExtent, op, what, " holds ", i, ", which is outside [", least, ", ", kMaxExtent, "]");
}

inline Conv2dProblem conv2d_problem(const char* op, const Tensor& x, const Tensor& weight, int64_t oc, const Ints& kernel,
                             const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                             const std::string& padding_mode) {
  check(x.dim() == 4, op, "x is ", shape(x), "; it must be [N, C, H, W]");
  check_extents(op, "kernel_size", kernel, 2, 1);
  check_extents(op, "stride", stride, 2, 1);
  check_extents(op, "dilation", dilation, 2, 1);
  check_extents(op, "padding", padding, 4, 0);
  Conv2dProblem p;
  p.batch = x.size(0), p.c = x.size(1), p.h = x.size(2), p.w = x.size(3);
  p.oc = oc, p.kh = kernel[0], p.kw = kernel[1], p.groups = groups;
  p.stride_h = stride[0], p.stride_w = stride[1], p.dilation_h = dilation[0], p.dilation_w = dilation[1];
  p.pad_left = padding[0], p.pad_right = padding[1], p.pad_top = padding[2], p.pad_bottom = padding[3];
  p.pad_mode = pad_mode_of(op, padding_mode);
  check(p.c >= 1 && p.h >= 1 && p.w >= 1 && oc >= 1, op, "x is ", shape(x), " and there are ", oc,
        " output channels; only the batch may be empty");
  check(groups >= 1 && p.c % groups == 0 && oc % groups == 0, op, "groups=", groups, " must divide the ", p.c,
        " input and ", oc, " output channels");
  const int64_t k = p.c / groups * p.kh * p.kw;
  check(k <= kMaxK, op, "K=C/groups*KH*KW=", k, " is above the limit of ", kMaxK);
  check(p.padded_h() >= p.dilation_h * (p.kh - 1) + 1 && p.padded_w() >= p.dilation_w * (p.kw - 1) + 1, op,
        "the kernel, dilated ", p.dilation_h * (p.kh - 1) + 1, "x", p.dilation_w * (p.kw - 1) + 1,
        ", is larger than the padded input, ", p.padded_h(), "x", p.padded_w());
  check(fits(p.pad_mode, std::max(p.pad_top, p.pad_bottom), p.h) && fits(p.pad_mode, std::max(p.pad_left, p.pad_right), p.w), op,
          padding_mode, " padding ", p.pad_left, ",", p.pad_right, ",", p.pad_top, ",", p.pad_bottom,
          " does not fit an input of ", p.h, "x", p.w);
  check(double(p.batch) * p.padded_h() * p.padded_w() * std::max(p.c, oc) < 0x1p60, op, "the padded input, ", p.batch,
        " of ", p.padded_h(), "x", p.padded_w(), ", is too large");
  p.x_type = dtype_of(op, "x", x.scalar_type());
  p.x = x.const_data_ptr();
  for (int i = 0; i < 4; ++i) p.x_strides[i] = x.stride(i);
  p.weight = check_packed(op, weight, weight_layout(oc, p.c / groups, p.kh, p.kw, groups), x);
  return p;
}

// ---- pooling


}  // namespace qk
