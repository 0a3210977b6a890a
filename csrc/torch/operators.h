// The operators, once for all devices: let the front check the arguments and fill a problem struct, allocate the output, let
// the Backend run it on the device of x. A Backend is a struct of static functions; cpu_ops.cpp and cuda_ops.cpp hold the two.
#pragma once
#include <tuple>

#include "../front/problems.h"
#include "views.h"

namespace qk {

// ---- quantize, dequantize

template <class Backend>
Tensor quantize(const Tensor& x_any, const Tensor& scale, const Tensor& zero_point) {
  const Tensor x = as_contiguous(x_any);
  QuantizeProblem p = quantize_problem(view(x), view(scale), view(zero_point));
  Tensor q = Backend::empty(x, sizes_of(x), ScalarType::Char);
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  Backend::run(x, p);
  return q;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> quantize_dynamic(const Tensor& x_any, bool per_row, bool symmetric) {
  const Tensor x = as_contiguous(x_any);
  QuantizeProblem p = quantize_dynamic_problem(view(x), per_row, symmetric);
  Tensor q = Backend::empty(x, sizes_of(x), ScalarType::Char);
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
  const Tensor q = as_contiguous(q_any);
  DequantizeProblem p = dequantize_problem(view(q), view(scale), view(zero_point), type_of(dtype));
  Tensor y = Backend::empty(q, sizes_of(q), dtype);
  p.y = y.mutable_data_ptr();
  Backend::run(q, p);
  return y;
}

// ---- weights

template <class Backend>
Tensor pack_weight(const Tensor& weight_any, int64_t groups) {
  const Tensor weight = as_contiguous(weight_any);
  const WeightSize w = weight_to_pack(view(weight), groups);
  Tensor packed = Backend::empty(weight, {w.layout().bytes()}, ScalarType::Char);
  check_packed_range(Backend::pack(weight, static_cast<const int8_t*>(weight.const_data_ptr()), w.oc, w.c, w.kh, w.kw, groups,
                                   static_cast<int8_t*>(packed.mutable_data_ptr())));
  return packed;
}

template <class Backend>
Tensor unpack_weight(const Tensor& packed, Ints size, int64_t groups) {
  const WeightSize w = weight_to_unpack(view(packed), size, groups);
  Tensor weight = Backend::empty(packed, size, ScalarType::Char);
  Backend::unpack(packed, static_cast<const int8_t*>(packed.const_data_ptr()), w.oc, w.c, w.kh, w.kw, groups,
                  static_cast<int8_t*>(weight.mutable_data_ptr()));
  return weight;
}

// ---- linear and conv2d

inline EpilogueArgs epilogue_args(const MaybeTensor& residual, double residual_scale, int64_t residual_zero_point, std::optional<double> clamp_min,
                                  std::optional<double> clamp_max, MaybeType out_dtype, double output_scale, int64_t output_zero_point) {
  const std::optional<Type> type = out_dtype ? std::optional<Type>(type_of(*out_dtype)) : std::nullopt;
  return {view(residual), residual_scale, residual_zero_point, clamp_min, clamp_max, type, output_scale, output_zero_point};
}

// A copy of the residual where it does not lie as the kernel reads it; to be kept during the call.
inline MaybeTensor held_residual(const MaybeTensor& residual, MemoryFormat format, Epilogue& e) {
  if (!residual || e.residual) return std::nullopt;
  const Tensor copy = torch::stable::contiguous(*residual, format);
  e.residual = copy.const_data_ptr();
  return copy;
}

template <class Backend>
Tensor linear(const Tensor& x_any, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
              const MaybeTensor& input_scale, const MaybeTensor& input_zero_point, bool symmetric,
              const MaybeTensor& residual, double residual_scale, int64_t residual_zero_point,
              std::optional<double> clamp_min, std::optional<double> clamp_max, MaybeType out_dtype,
              double output_scale, int64_t output_zero_point) {
  const Tensor x = rows_lie(view(x_any)) ? x_any : torch::stable::contiguous(x_any);
  const Operands o{view(x), view(weight), view(weight_scale), view(bias), view(input_scale), view(input_zero_point), symmetric};
  GemmProblem p = linear_problem(o, epilogue_args(residual, residual_scale, residual_zero_point, clamp_min, clamp_max, out_dtype, output_scale, output_zero_point));
  const MaybeTensor held = held_residual(residual, MemoryFormat::Contiguous, p.epilogue);
  Tensor y = Backend::empty(x, with_last(o.x, p.n), scalar_type(p.epilogue.out_type));
  p.c = y.mutable_data_ptr();
  Backend::run(x, p);
  return y;
}

template <class Backend>
Tensor linear_weight_only(const Tensor& x_any, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
                          const MaybeTensor& residual, double residual_scale, int64_t residual_zero_point,
                          std::optional<double> clamp_min, std::optional<double> clamp_max, MaybeType out_dtype,
                          double output_scale, int64_t output_zero_point) {
  const Tensor x = rows_lie(view(x_any)) ? x_any : torch::stable::contiguous(x_any);
  const Operands o{view(x), view(weight), view(weight_scale), view(bias), {}, {}, true};
  WeightOnlyProblem p = weight_only_problem(o, epilogue_args(residual, residual_scale, residual_zero_point, clamp_min, clamp_max, out_dtype, output_scale, output_zero_point));
  const MaybeTensor held = held_residual(residual, MemoryFormat::Contiguous, p.epilogue);
  Tensor y = Backend::empty(x, with_last(o.x, p.n), scalar_type(p.epilogue.out_type));
  p.c = y.mutable_data_ptr();
  Backend::run_weight_only(x, p);
  return y;
}

template <class Backend>
Tensor conv2d(const Tensor& x_any, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
              const MaybeTensor& input_scale, const MaybeTensor& input_zero_point, bool symmetric, Ints kernel_size,
              Ints stride, Ints padding, Ints dilation, int64_t groups, std::string padding_mode,
              const MaybeTensor& residual, double residual_scale, int64_t residual_zero_point,
              std::optional<double> clamp_min, std::optional<double> clamp_max, MaybeType out_dtype,
              double output_scale, int64_t output_zero_point) {
  const MemoryFormat format = format_like(view(x_any));
  const Tensor x = x_any.dim() == 4 ? Backend::readable(x_any) : x_any;
  const Operands o{view(x), view(weight), view(weight_scale), view(bias), view(input_scale), view(input_zero_point), symmetric};
  Conv2dProblem p = conv2d_problem(o, {kernel_size, stride, padding, dilation}, groups, padding_mode.c_str(),
                                   epilogue_args(residual, residual_scale, residual_zero_point, clamp_min, clamp_max, out_dtype, output_scale, output_zero_point));
  const MaybeTensor held = held_residual(residual, MemoryFormat::ChannelsLast, p.epilogue);
  Tensor y = Backend::empty(x, {p.batch, p.oc, p.oh(), p.ow()}, scalar_type(p.epilogue.out_type), format);
  p.y = y.mutable_data_ptr();
  p.y_nhwc = format == MemoryFormat::ChannelsLast;
  if (p.batch) Backend::run(x, p);
  return y;
}

// ---- pooling

template <class Backend>
Tensor run_pool(const Tensor& x, Pool2dProblem p) {
  const Tensor nhwc = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  Tensor y = Backend::empty(x, {p.batch, p.c, p.oh, p.ow}, ScalarType::Char, MemoryFormat::ChannelsLast);
  p.x = static_cast<const int8_t*>(nhwc.const_data_ptr());
  p.y = static_cast<int8_t*>(y.mutable_data_ptr());
  if (p.batch) Backend::run(x, p);
  return torch::stable::contiguous(y, format_like(view(x)));
}

template <class Backend>
Tensor max_pool2d(const Tensor& x, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode) {
  return run_pool<Backend>(x, max_pool2d_problem(view(x), {kernel_size, stride, padding, dilation}, ceil_mode));
}

template <class Backend>
Tensor avg_pool2d(const Tensor& x, int64_t zero_point, Ints kernel_size, Ints stride, Ints padding, bool ceil_mode,
                  bool count_include_pad) {
  return run_pool<Backend>(x, avg_pool2d_problem(view(x), {kernel_size, stride, padding, {}}, ceil_mode, zero_point, count_include_pad));
}

template <class Backend>
Tensor mean_pool2d(const Tensor& x) {
  MeanProblem p = mean_pool2d_problem(view(x));
  Tensor y = Backend::empty(x, {p.batch, p.c, 1, 1}, ScalarType::Float);
  p.y = static_cast<float*>(y.mutable_data_ptr());
  if (p.batch) Backend::run(x, p);
  return y;
}

// ---- lookup

template <class Backend>
Tensor lookup(const Tensor& x_any, const Tensor& table) {
  const MemoryFormat format = format_like(view(x_any));
  const Tensor x = format == MemoryFormat::ChannelsLast ? x_any : as_contiguous(x_any);
  LookupProblem p = lookup_problem(view(x), view(table));
  Tensor y = Backend::empty(x, sizes_of(x), ScalarType::Char, format);
  p.y = static_cast<int8_t*>(y.mutable_data_ptr());
  if (p.count) Backend::run(x, p);
  return y;
}

#define QK_IMPL(name) m.impl(#name, TORCH_BOX((&Operator<#name, &name<Backend>>::call)))

template <class Backend>
void register_operators(torch::stable::detail::StableLibrary& m) {
  QK_IMPL(quantize);
  QK_IMPL(quantize_dynamic);
  QK_IMPL(dequantize);
  QK_IMPL(pack_weight);
  QK_IMPL(unpack_weight);
  QK_IMPL(linear);
  QK_IMPL(linear_weight_only);
  QK_IMPL(conv2d);
  QK_IMPL(max_pool2d);
  QK_IMPL(avg_pool2d);
  QK_IMPL(mean_pool2d);
  QK_IMPL(lookup);
}

#undef QK_IMPL

}  // namespace qk
