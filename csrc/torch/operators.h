// The operators, once for all devices: check the arguments, allocate the output, fill a problem struct, let the Backend run
// it on the device of x. A Backend is a struct of static functions; cpu_ops.cpp and cuda_ops.cpp hold the two.
#pragma once
#include <tuple>

#include "arguments.h"

namespace qk {

// ---- quantize, dequantize

template <class Backend>
Tensor quantize(const Tensor& x_any, const Tensor& scale, const Tensor& zero_point) {
  const Tensor x = as_contiguous(x_any);
  QuantizeProblem p = quantize_problem("quantize", x);
  p.rows_per_scale = rows_per_scale("quantize", scale, p.rows);
  p.scale = const_cast<float*>(check_scales("quantize", "scale", scale, scale.numel(), x));
  p.zero = const_cast<int32_t*>(check_zero_points("quantize", "zero_point", zero_point, scale.numel(), x));
  Tensor q = Backend::empty(x, Ints(x.sizes().begin(), x.sizes().end()), ScalarType::Char);
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  Backend::run(x, p);
  return q;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> quantize_dynamic(const Tensor& x_any, bool per_row, bool symmetric) {
  const Tensor x = as_contiguous(x_any);
  QuantizeProblem p = quantize_problem("quantize_dynamic", x);
  p.range = symmetric ? Range::dynamic_symmetric : Range::dynamic_asymmetric;
  p.rows_per_scale = per_row ? 1 : std::max<int64_t>(p.rows, 1);
  Tensor q = Backend::empty(x, Ints(x.sizes().begin(), x.sizes().end()), ScalarType::Char);
  Ints size;
  if (per_row) size.assign(x.sizes().begin(), x.sizes().end() - 1);
  Tensor scale = empty_beside(x, size, ScalarType::Float), zero = empty_beside(x, size, ScalarType::Int);
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  p.zero = static_cast<int32_t*>(zero.mutable_data_ptr());
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  if (x.numel() == 0) torch::stable::fill_(scale, 1.0), torch::stable::zero_(zero);  // nothing to see a range in
  Backend::run(x, p);
  return {q, scale, zero};
}

template <class Backend>
Tensor dequantize(const Tensor& q_any, const Tensor& scale, const Tensor& zero_point, ScalarType dtype) {
  const char* op = "dequantize";
  const Tensor q = as_contiguous(q_any);
  check(q.scalar_type() == ScalarType::Char, op, "q is ", name(q.scalar_type()), "; it must be int8");
  DequantizeProblem p;
  p.cols = columns(op, q);
  p.rows = rows_of(q);
  p.y_type = dtype_of(op, "dtype", dtype);
  check(p.y_type != DType::s8, op, "dtype is int8; choose a float dtype");
  p.rows_per_scale = rows_per_scale(op, scale, p.rows);
  p.scale = check_scales(op, "scale", scale, scale.numel(), q);
  p.zero = check_zero_points(op, "zero_point", zero_point, scale.numel(), q);
  Tensor y = Backend::empty(q, Ints(q.sizes().begin(), q.sizes().end()), dtype);
  p.q = static_cast<const int8_t*>(q.const_data_ptr());
  p.y = y.mutable_data_ptr();
  Backend::run(q, p);
  return y;
}

// ---- weights

template <class Backend>
Tensor pack_weight(const Tensor& weight_any, int64_t groups) {
  const char* op = "pack_weight";
  check(weight_any.scalar_type() == ScalarType::Char, op, "weight is ", name(weight_any.scalar_type()), "; it must be int8");
  const Tensor weight = as_contiguous(weight_any);
  const WeightSize w = weight_size(op, Ints(weight.sizes().begin(), weight.sizes().end()), groups);
  Tensor packed = Backend::empty(weight, {weight_layout(w.oc, w.c, w.kh, w.kw, groups).bytes()}, ScalarType::Char);
  check(Backend::pack(weight, static_cast<const int8_t*>(weight.const_data_ptr()), w.oc, w.c, w.kh, w.kw, groups,
                      static_cast<int8_t*>(packed.mutable_data_ptr())),
        op, "weight holds -128; int8 weights are in [-127, 127]");
  return packed;
}

template <class Backend>
Tensor unpack_weight(const Tensor& packed, Ints size, int64_t groups) {
  const char* op = "unpack_weight";
  const WeightSize w = weight_size(op, size, groups);
  const int8_t* bytes = check_packed(op, packed, weight_layout(w.oc, w.c, w.kh, w.kw, groups), packed);
  Tensor weight = Backend::empty(packed, size, ScalarType::Char);
  Backend::unpack(packed, bytes, w.oc, w.c, w.kh, w.kw, groups, static_cast<int8_t*>(weight.mutable_data_ptr()));
  return weight;
}

// ---- linear

template <class Backend>
Tensor linear(const Tensor& x_any, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
              const MaybeTensor& input_scale, const MaybeTensor& input_zero_point, bool symmetric,
              const MaybeTensor& residual, double residual_scale, int64_t residual_zero_point,
              std::optional<double> clamp_min, std::optional<double> clamp_max, MaybeType out_dtype_any,
              double output_scale, int64_t output_zero_point) {
  const char* op = "linear";
  Tensor x = x_any;
  GemmProblem p = linear_problem(op, x, weight, weight_scale);
  const ScalarType out_dtype = out_dtype_any.value_or(float_type(x));
  const EpilogueArgs args{residual, residual_scale, residual_zero_point, clamp_min, clamp_max, out_dtype, output_scale, output_zero_point};
  p.epilogue = epilogue_of(op, x, weight_scale, bias, args);
  p.range = set_input_scales(op, x, input_scale, input_zero_point, symmetric, p.m, "row", 1, p.m, p.epilogue);
  Tensor y = Backend::empty(x, with_last(x_any, p.n), out_dtype);
  MaybeTensor held;
  set_residual(op, args, y, MemoryFormat::Contiguous, p.epilogue, held);
  set_output(p, y);
  Backend::run(x, p);
  return y;
}

template <class Backend>
Tensor linear_weight_only(const Tensor& x_any, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
                          const MaybeTensor& residual, double residual_scale, int64_t residual_zero_point,
                          std::optional<double> clamp_min, std::optional<double> clamp_max, MaybeType out_dtype_any,
                          double output_scale, int64_t output_zero_point) {
  const char* op = "linear_weight_only";
  Tensor x = x_any;
  WeightOnlyProblem p = linear_problem(op, x, weight, weight_scale);
  check(p.x_type != DType::s8, op, "x is int8; use linear for int8 activations");
  const ScalarType out_dtype = out_dtype_any.value_or(float_type(x));
  const EpilogueArgs args{residual, residual_scale, residual_zero_point, clamp_min, clamp_max, out_dtype, output_scale, output_zero_point};
  p.epilogue = epilogue_of(op, x, weight_scale, bias, args);
  Tensor y = Backend::empty(x, with_last(x_any, p.n), out_dtype);
  MaybeTensor held;
  set_residual(op, args, y, MemoryFormat::Contiguous, p.epilogue, held);
  set_output(p, y);
  Backend::run_weight_only(x, p);
  return y;
}

// ---- conv2d

template <class Backend>
Tensor conv2d(const Tensor& x_any, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
              const MaybeTensor& input_scale, const MaybeTensor& input_zero_point, bool symmetric, Ints kernel_size,
              Ints stride, Ints padding, Ints dilation, int64_t groups, std::string padding_mode,
              const MaybeTensor& residual, double residual_scale, int64_t residual_zero_point,
              std::optional<double> clamp_min, std::optional<double> clamp_max, MaybeType out_dtype_any,
              double output_scale, int64_t output_zero_point) {
  const char* op = "conv2d";
  const Tensor x = x_any.dim() == 4 ? Backend::readable(x_any) : x_any;
  Conv2dProblem p = conv2d_problem(op, x, weight, weight_scale.numel(), kernel_size, stride, padding, dilation, groups, padding_mode);
  const ScalarType out_dtype = out_dtype_any.value_or(float_type(x));
  const EpilogueArgs args{residual, residual_scale, residual_zero_point, clamp_min, clamp_max, out_dtype, output_scale, output_zero_point};
  p.epilogue = epilogue_of(op, x, weight_scale, bias, args);
  const int64_t pixels = p.oh() * p.ow();
  p.range = set_input_scales(op, x, input_scale, input_zero_point, symmetric, p.batch, "image", pixels,
                             p.batch * pixels, p.epilogue);
  const MemoryFormat format = format_like(x_any);
  Tensor y = Backend::empty(x, {p.batch, p.oc, p.oh(), p.ow()}, out_dtype, format);
  MaybeTensor held;
  set_residual(op, args, y, MemoryFormat::ChannelsLast, p.epilogue, held);
  p.epilogue.residual_stride = p.oc;
  p.y = y.mutable_data_ptr();
  p.y_nhwc = format == MemoryFormat::ChannelsLast;
  if (y.numel() == 0) return y;
  Backend::run(x, p);
  return y;
}

// ---- pooling

template <class Backend>
Tensor pool2d(const char* op, const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
              const Ints& dilation, bool ceil_mode, Pool2dProblem p) {
  check(x.dim() == 4 && x.scalar_type() == ScalarType::Char, op, "x is ", name(x.scalar_type()), " ", shape(x),
        "; it must be int8 [N, C, H, W]");
  check_extents(op, "kernel_size", kernel, 2, 1);
  check_extents(op, "stride", stride, 2, 1);
  check_extents(op, "padding", padding, 2, 0);
  check_extents(op, "dilation", dilation, 2, 1);
  check(padding[0] * 2 <= kernel[0] && padding[1] * 2 <= kernel[1], op, "padding ", padding[0], ",", padding[1],
        " is more than half of the kernel ", kernel[0], ",", kernel[1]);
  p.batch = x.size(0), p.c = x.size(1), p.h = x.size(2), p.w = x.size(3);
  check(p.c >= 1 && p.h >= 1 && p.w >= 1, op, "x is ", shape(x), "; only the batch may be empty");
  check(!p.average || kernel[0] * kernel[1] <= kMaxWindow, op, "kernel_size ", kernel[0], "x", kernel[1],
        " averages more than ", kMaxWindow, " values");
  p.kh = kernel[0], p.kw = kernel[1], p.stride_h = stride[0], p.stride_w = stride[1];
  p.pad_h = padding[0], p.pad_w = padding[1], p.dilation_h = dilation[0], p.dilation_w = dilation[1];
  check(p.h + 2 * p.pad_h >= p.dilation_h * (p.kh - 1) + 1 && p.w + 2 * p.pad_w >= p.dilation_w * (p.kw - 1) + 1, op,
        "the kernel is larger than the padded input, ", p.h + 2 * p.pad_h, "x", p.w + 2 * p.pad_w);
  p.oh = pooled(p.h, p.kh, p.stride_h, p.pad_h, p.dilation_h, ceil_mode);
  p.ow = pooled(p.w, p.kw, p.stride_w, p.pad_w, p.dilation_w, ceil_mode);
  const Tensor nhwc = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  Tensor y = Backend::empty(x, {p.batch, p.c, p.oh, p.ow}, ScalarType::Char, MemoryFormat::ChannelsLast);
  p.x = static_cast<const int8_t*>(nhwc.const_data_ptr());
  p.y = static_cast<int8_t*>(y.mutable_data_ptr());
  if (y.numel()) Backend::run(x, p);
  return torch::stable::contiguous(y, format_like(x));
}

template <class Backend>
Tensor max_pool2d(const Tensor& x, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode) {
  return pool2d<Backend>("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode, {});
}

template <class Backend>
Tensor avg_pool2d(const Tensor& x, int64_t zero_point, Ints kernel_size, Ints stride, Ints padding, bool ceil_mode,
                  bool count_include_pad) {
  Pool2dProblem p;
  p.average = true;
  p.x_zero = check_zero_point("avg_pool2d", "zero_point", zero_point);
  p.count_include_pad = count_include_pad;
  return pool2d<Backend>("avg_pool2d", x, kernel_size, stride, padding, {1, 1}, ceil_mode, p);
}

template <class Backend>
Tensor mean_pool2d(const Tensor& x) {
  const char* op = "mean_pool2d";
  check(x.dim() == 4 && x.scalar_type() == ScalarType::Float, op, "x is ", name(x.scalar_type()), " ", shape(x), "; it must be float32 [N, C, H, W]");
  MeanProblem p;
  p.batch = x.size(0), p.c = x.size(1), p.h = x.size(2), p.w = x.size(3);
  check(p.c >= 1 && p.h >= 1 && p.w >= 1, op, "x is ", shape(x), "; only the batch may be empty");
  p.x = static_cast<const float*>(x.const_data_ptr());
  for (int i = 0; i < 4; ++i) p.x_strides[i] = x.stride(i);
  Tensor y = Backend::empty(x, {p.batch, p.c, 1, 1}, ScalarType::Float);
  p.y = static_cast<float*>(y.mutable_data_ptr());
  if (p.batch) Backend::run(x, p);
  return y;
}

// ---- lookup

template <class Backend>
Tensor lookup(const Tensor& x_any, const Tensor& table) {
  const char* op = "lookup";
  check(x_any.scalar_type() == ScalarType::Char, op, "x is ", name(x_any.scalar_type()), "; it must be int8");
  check_beside(op, "table", table, x_any);
  check(table.scalar_type() == ScalarType::Char && table.is_contiguous() && table.numel() == 256, op, "table is ",
        name(table.scalar_type()), " ", shape(table), "; it must be contiguous int8 [256]");
  const MemoryFormat format = x_any.dim() == 4 ? format_like(x_any) : MemoryFormat::Contiguous;
  const Tensor x = format == MemoryFormat::ChannelsLast ? x_any : as_contiguous(x_any);
  Tensor y = Backend::empty(x, Ints(x.sizes().begin(), x.sizes().end()), ScalarType::Char, format);
  LookupProblem p;
  p.count = x.numel();
  p.table = static_cast<const int8_t*>(table.const_data_ptr());
  p.x = static_cast<const int8_t*>(x.const_data_ptr());
  p.y = static_cast<int8_t*>(y.mutable_data_ptr());
  if (p.count) Backend::run(x, p);
  return y;
}

template <class Backend>
void register_operators(torch::stable::detail::StableLibrary& m) {
  m.impl("quantize", TORCH_BOX(&quantize<Backend>));
  m.impl("quantize_dynamic", TORCH_BOX(&quantize_dynamic<Backend>));
  m.impl("dequantize", TORCH_BOX(&dequantize<Backend>));
  m.impl("pack_weight", TORCH_BOX(&pack_weight<Backend>));
  m.impl("unpack_weight", TORCH_BOX(&unpack_weight<Backend>));
  m.impl("linear", TORCH_BOX(&linear<Backend>));
  m.impl("linear_weight_only", TORCH_BOX(&linear_weight_only<Backend>));
  m.impl("conv2d", TORCH_BOX(&conv2d<Backend>));
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d<Backend>));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d<Backend>));
  m.impl("mean_pool2d", TORCH_BOX(&mean_pool2d<Backend>));
  m.impl("lookup", TORCH_BOX(&lookup<Backend>));
}

}  // namespace qk
