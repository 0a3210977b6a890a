// The operators on the CPU: check the arguments, allocate the output, fill a problem struct, run its driver.
#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../core/layout.h"
#include "../cpu/conv2d.h"
#include "../cpu/gemm.h"
#include "../cpu/move.h"
#include "../cpu/pack.h"
#include "../cpu/pool.h"
#include "../cpu/quantize.h"
#include "checks.h"
#include "tensors.h"

namespace qk::cpu_ops {

using MaybeTensor = std::optional<Tensor>;
using MaybeType = std::optional<ScalarType>;

// As torch tells it: axes of size 1 may have any stride.
static bool is_channels_last(const Tensor& x) {
  int64_t expected = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) == 1) continue;
    if (x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

// The output follows the input: channels-last in, channels-last out.
static MemoryFormat format_like(const Tensor& x) {
  return !x.is_contiguous() && is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

static Ints with_last(const Tensor& x, int64_t last) {
  Ints size(x.sizes().begin(), x.sizes().end());
  size.back() = last;
  return size;
}

// ---- quantize, dequantize

static int64_t rows_of(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  return rows;
}

// Scales of x seen as rows of its last axis: one for all, or one a row. Returns rows per scale.
static int64_t rows_per_scale(const char* op, const Tensor& scale, int64_t rows) {
  const int64_t count = scale.numel();
  check(count == 1 || count == rows, op, "scale has ", count, " values; 1 or the number of rows, ", rows, ", is needed");
  return count == 1 ? std::max<int64_t>(rows, 1) : 1;
}

static int64_t columns(const char* op, const Tensor& x) {
  check(x.dim() >= 1, op, "x has no axis; give it at least one");
  return x.size(x.dim() - 1);
}

static QuantizeProblem quantize_problem(const char* op, const Tensor& x) {
  QuantizeProblem p;
  p.x_type = dtype_of(op, "x", x.scalar_type());
  check(p.x_type != DType::s8, op, "x is int8 already");
  p.cols = columns(op, x);
  p.rows = rows_of(x);
  p.x = x.const_data_ptr();
  return p;
}

static Tensor quantize(const Tensor& x_any, const Tensor& scale, const Tensor& zero_point) {
  const Tensor x = as_contiguous(x_any);
  QuantizeProblem p = quantize_problem("quantize", x);
  p.rows_per_scale = rows_per_scale("quantize", scale, p.rows);
  p.scale = const_cast<float*>(check_scales("quantize", "scale", scale, scale.numel()));
  p.zero = const_cast<int32_t*>(check_zero_points("quantize", "zero_point", zero_point, scale.numel()));
  Tensor q = empty_cpu(Ints(x.sizes().begin(), x.sizes().end()), ScalarType::Char);
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  qk::quantize(p, active_isa(), torch_threads());
  return q;
}

static std::tuple<Tensor, Tensor, Tensor> quantize_dynamic(const Tensor& x_any, bool per_row, bool symmetric) {
  const Tensor x = as_contiguous(x_any);
  QuantizeProblem p = quantize_problem("quantize_dynamic", x);
  p.range = symmetric ? Range::dynamic_symmetric : Range::dynamic_asymmetric;
  p.rows_per_scale = per_row ? 1 : std::max<int64_t>(p.rows, 1);
  Tensor q = empty_cpu(Ints(x.sizes().begin(), x.sizes().end()), ScalarType::Char);
  Ints size;
  if (per_row) size.assign(x.sizes().begin(), x.sizes().end() - 1);
  Tensor scale = empty_cpu(size, ScalarType::Float), zero = empty_cpu(size, ScalarType::Int);
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  p.zero = static_cast<int32_t*>(zero.mutable_data_ptr());
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  if (p.rows == 0 && !per_row) *p.scale = 1.0f, *p.zero = 0;  // no row to see a range in
  qk::quantize(p, active_isa(), torch_threads());
  return {q, scale, zero};
}

static Tensor dequantize(const Tensor& q_any, const Tensor& scale, const Tensor& zero_point, ScalarType dtype) {
  const char* op = "dequantize";
  const Tensor q = as_contiguous(q_any);
  check(q.scalar_type() == ScalarType::Char, op, "q is ", name(q.scalar_type()), "; it must be int8");
  DequantizeProblem p;
  p.cols = columns(op, q);
  p.rows = rows_of(q);
  p.y_type = dtype_of(op, "dtype", dtype);
  check(p.y_type != DType::s8, op, "dtype is int8; choose a float dtype");
  p.rows_per_scale = rows_per_scale(op, scale, p.rows);
  p.scale = check_scales(op, "scale", scale, scale.numel());
  p.zero = check_zero_points(op, "zero_point", zero_point, scale.numel());
  Tensor y = empty_cpu(Ints(q.sizes().begin(), q.sizes().end()), dtype);
  p.q = static_cast<const int8_t*>(q.const_data_ptr());
  p.y = y.mutable_data_ptr();
  qk::dequantize(p, active_isa(), torch_threads());
  return y;
}

// ---- weights

struct WeightSize {
  int64_t oc, c, kh, kw, groups;
};

static WeightSize weight_size(const char* op, const Ints& size, int64_t groups) {
  check(size.size() == 2 || size.size() == 4, op, "weight has ", size.size(), " axes; 2 (linear) or 4 (conv2d) are supported");
  const WeightSize w{size[0], size[1], size.size() == 4 ? size[2] : 1, size.size() == 4 ? size[3] : 1, groups};
  check(groups >= 1 && w.oc % groups == 0, op, "groups=", groups, " does not divide the ", w.oc, " output channels");
  check(w.oc >= 1 && w.c * w.kh * w.kw >= 1, op, "weight is empty");
  check(w.c * w.kh * w.kw <= kMaxK, op, "K=", w.c * w.kh * w.kw, " is above the limit of ", kMaxK);
  return w;
}

static Tensor pack_weight(const Tensor& weight_any, int64_t groups) {
  const char* op = "pack_weight";
  check(weight_any.scalar_type() == ScalarType::Char, op, "weight is ", name(weight_any.scalar_type()), "; it must be int8");
  const Tensor weight = as_contiguous(weight_any);
  const WeightSize w = weight_size(op, Ints(weight.sizes().begin(), weight.sizes().end()), groups);
  Tensor packed = empty_cpu({weight_layout(w.oc, w.c, w.kh, w.kw, groups).bytes()}, ScalarType::Char);
  check(qk::pack_weight(static_cast<const int8_t*>(weight.const_data_ptr()), w.oc, w.c, w.kh, w.kw, groups,
                        static_cast<int8_t*>(packed.mutable_data_ptr())),
        op, "weight holds -128; int8 weights are in [-127, 127]");
  return packed;
}

static const int8_t* check_packed(const char* op, const Tensor& packed, const PackedLayout& layout) {
  check_cpu(op, "weight", packed);
  check(packed.scalar_type() == ScalarType::Char && packed.is_contiguous(), op, "weight must come from pack_weight");
  const int8_t* bytes = static_cast<const int8_t*>(packed.const_data_ptr());
  check(layout.matches(bytes, packed.numel()), op, "weight holds ", packed.numel(), " bytes, which are not a packed weight of N=",
        layout.groups * layout.n, ", K=", layout.k, ", groups=", layout.groups, ", as the other arguments ask for");
  return bytes;
}

static Tensor unpack_weight(const Tensor& packed, Ints size, int64_t groups) {
  const char* op = "unpack_weight";
  const WeightSize w = weight_size(op, size, groups);
  const int8_t* bytes = check_packed(op, packed, weight_layout(w.oc, w.c, w.kh, w.kw, groups));
  Tensor weight = empty_cpu(size, ScalarType::Char);
  qk::unpack_weight(bytes, w.oc, w.c, w.kh, w.kw, groups, static_cast<int8_t*>(weight.mutable_data_ptr()));
  return weight;
}

// ---- what linear and conv2d share

// Of an output where none was asked for.
static ScalarType float_type(const Tensor& x) {
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

static void check_positive(const char* op, const char* what, double value) {
  check(is_scale(float(value)), op, what, " is ", value, "; scales and their inverses are finite and above 0");
}

static Epilogue epilogue_of(const char* op, const Tensor& weight_scale, const MaybeTensor& bias, const EpilogueArgs& args) {
  Epilogue e;
  const int64_t n = weight_scale.numel();
  check(weight_scale.dim() == 1, op, "weight_scale is ", shape(weight_scale), "; it must be [N]");
  e.w_scale = check_scales(op, "weight_scale", weight_scale, n);
  if (bias) {
    check_cpu(op, "bias", *bias);
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
static void set_residual(const char* op, const EpilogueArgs& args, const Tensor& y, MemoryFormat rows, Epilogue& e,
                  MaybeTensor& held) {
  if (!args.residual) return;
  const Tensor& r = *args.residual;
  check_cpu(op, "residual", r);
  bool same = r.dim() == y.dim();
  for (int64_t i = 0; same && i < r.dim(); ++i) same = r.size(i) == y.size(i);
  check(same, op, "residual is ", shape(r), ", but the output is ", shape(y));
  held = torch::stable::contiguous(r, rows);
  e.residual = held->const_data_ptr();
  e.residual_type = dtype_of(op, "residual", r.scalar_type());
}

// Scales of the input: given (`count` allowed besides one), or found by the kernel.
static Range set_input_scales(const char* op, DType x_type, const MaybeTensor& scale, const MaybeTensor& zero, bool symmetric,
                       int64_t count, const char* count_name, int64_t rows_each, int64_t rows, Epilogue& e) {
  check(bool(scale) == bool(zero), op, "input_scale and input_zero_point come together; only one was given");
  if (!scale) {
    check(x_type != DType::s8, op, "x is int8, so input_scale and input_zero_point are needed");
    return symmetric ? Range::dynamic_symmetric : Range::dynamic_asymmetric;
  }
  const int64_t given = scale->numel();
  check(given == 1 || given == count, op, "input_scale has ", given, " values; 1 or ", count, " (one a ", count_name,
        ") are needed");
  e.x_scale = check_scales(op, "input_scale", *scale, given);
  e.x_zero = check_zero_points(op, "input_zero_point", *zero, given);
  e.rows_per_scale = std::max<int64_t>(given == count && count != 1 ? rows_each : rows, 1);
  return Range::given;
}

// ---- linear

// x as rows whose values are together; copied only where they are not.
static GemmProblem linear_problem(const char* op, Tensor& x, const Tensor& weight, const Tensor& weight_scale) {
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
  p.weight = check_packed(op, weight, layout);
  return p;
}

static void set_output(GemmProblem& p, Tensor& y) {
  p.c = y.mutable_data_ptr();
  p.c_stride = p.n;
  p.epilogue.residual_stride = p.n;
}

static Tensor linear(const Tensor& x_any, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
              const MaybeTensor& input_scale, const MaybeTensor& input_zero_point, bool symmetric,
              const MaybeTensor& residual, double residual_scale, int64_t residual_zero_point,
              std::optional<double> clamp_min, std::optional<double> clamp_max, MaybeType out_dtype_any,
              double output_scale, int64_t output_zero_point) {
  const char* op = "linear";
  Tensor x = x_any;
  GemmProblem p = linear_problem(op, x, weight, weight_scale);
  const ScalarType out_dtype = out_dtype_any.value_or(float_type(x));
  const EpilogueArgs args{residual, residual_scale, residual_zero_point, clamp_min, clamp_max, out_dtype, output_scale, output_zero_point};
  p.epilogue = epilogue_of(op, weight_scale, bias, args);
  p.range = set_input_scales(op, p.x_type, input_scale, input_zero_point, symmetric, p.m, "row", 1, p.m, p.epilogue);
  Tensor y = empty_cpu(with_last(x_any, p.n), out_dtype);
  MaybeTensor held;
  set_residual(op, args, y, MemoryFormat::Contiguous, p.epilogue, held);
  set_output(p, y);
  const Parallel threads = torch_threads();
  Scratch scratch(gemm_workspace(p, active_isa(), threads.threads));
  gemm(p, active_isa(), threads, scratch.data());
  return y;
}

static Tensor linear_weight_only(const Tensor& x_any, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
                          const MaybeTensor& residual, double residual_scale, int64_t residual_zero_point,
                          std::optional<double> clamp_min, std::optional<double> clamp_max, MaybeType out_dtype_any,
                          double output_scale, int64_t output_zero_point) {
  const char* op = "linear_weight_only";
  Tensor x = x_any;
  WeightOnlyProblem p = linear_problem(op, x, weight, weight_scale);
  check(p.x_type != DType::s8, op, "x is int8; use linear for int8 activations");
  const ScalarType out_dtype = out_dtype_any.value_or(float_type(x));
  const EpilogueArgs args{residual, residual_scale, residual_zero_point, clamp_min, clamp_max, out_dtype, output_scale, output_zero_point};
  p.epilogue = epilogue_of(op, weight_scale, bias, args);
  Tensor y = empty_cpu(with_last(x_any, p.n), out_dtype);
  MaybeTensor held;
  set_residual(op, args, y, MemoryFormat::Contiguous, p.epilogue, held);
  set_output(p, y);
  const Parallel threads = torch_threads();
  Scratch scratch(weight_only_workspace(p, threads.threads));
  weight_only(p, active_isa(), threads, scratch.data());
  return y;
}

// ---- conv2d

static PadMode pad_mode_of(const char* op, const std::string& mode) {
  if (mode == "zeros") return PadMode::zeros;
  if (mode == "reflect") return PadMode::reflect;
  if (mode == "replicate") return PadMode::replicate;
  if (mode == "circular") return PadMode::circular;
  fail(op, "padding_mode='", mode, "' is unknown; choose one of zeros, reflect, replicate, circular");
}

static void check_extents(const char* op, const char* what, const Ints& v, size_t count, int64_t least) {
  check(v.size() == count, op, what, " holds ", v.size(), " integers; ", count, " are needed");
  for (int64_t i : v) check(i >= least && i <= kMaxExtent, op, what, " holds ", i, ", which is outside [", least, ", ", kMaxExtent, "]");
}

static Conv2dProblem conv2d_problem(const char* op, const Tensor& x, const Tensor& weight, int64_t oc, const Ints& kernel,
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
  const int64_t room = p.pad_mode == PadMode::reflect ? 1 : 0;
  if (p.pad_mode == PadMode::reflect || p.pad_mode == PadMode::circular)
    check(std::max(p.pad_top, p.pad_bottom) <= p.h - room && std::max(p.pad_left, p.pad_right) <= p.w - room, op,
          padding_mode, " padding ", p.pad_left, ",", p.pad_right, ",", p.pad_top, ",", p.pad_bottom,
          " does not fit an input of ", p.h, "x", p.w);
  check(double(p.batch) * p.padded_h() * p.padded_w() * std::max(p.c, oc) < 0x1p60, op, "the padded input, ", p.batch,
        " of ", p.padded_h(), "x", p.padded_w(), ", is too large");
  p.x_type = dtype_of(op, "x", x.scalar_type());
  p.x = x.const_data_ptr();
  for (int i = 0; i < 4; ++i) p.x_strides[i] = x.stride(i);
  p.weight = check_packed(op, weight, weight_layout(oc, p.c / groups, p.kh, p.kw, groups));
  return p;
}

static Tensor conv2d(const Tensor& x_any, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
              const MaybeTensor& input_scale, const MaybeTensor& input_zero_point, bool symmetric, Ints kernel_size,
              Ints stride, Ints padding, Ints dilation, int64_t groups, std::string padding_mode,
              const MaybeTensor& residual, double residual_scale, int64_t residual_zero_point,
              std::optional<double> clamp_min, std::optional<double> clamp_max, MaybeType out_dtype_any,
              double output_scale, int64_t output_zero_point) {
  const char* op = "conv2d";
  const Tensor x = x_any.dim() == 4 ? readable(x_any) : x_any;
  Conv2dProblem p = conv2d_problem(op, x, weight, weight_scale.numel(), kernel_size, stride, padding, dilation, groups, padding_mode);
  const ScalarType out_dtype = out_dtype_any.value_or(float_type(x));
  const EpilogueArgs args{residual, residual_scale, residual_zero_point, clamp_min, clamp_max, out_dtype, output_scale, output_zero_point};
  p.epilogue = epilogue_of(op, weight_scale, bias, args);
  const int64_t pixels = p.oh() * p.ow();
  p.range = set_input_scales(op, p.x_type, input_scale, input_zero_point, symmetric, p.batch, "image", pixels,
                             p.batch * pixels, p.epilogue);
  const MemoryFormat format = format_like(x_any);
  Tensor y = empty_cpu({p.batch, p.oc, p.oh(), p.ow()}, out_dtype, format);
  MaybeTensor held;
  set_residual(op, args, y, MemoryFormat::ChannelsLast, p.epilogue, held);
  p.epilogue.residual_stride = p.oc;
  p.y = y.mutable_data_ptr();
  p.y_nhwc = format == MemoryFormat::ChannelsLast;
  if (y.numel() == 0) return y;
  const Parallel threads = torch_threads();
  Scratch scratch(conv2d_workspace(p, active_isa(), threads.threads));
  qk::conv2d(p, active_isa(), threads, scratch.data());
  return y;
}

// ---- pooling

static int64_t pooled(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool ceil_mode) {
  const int64_t span = size + 2 * pad - dilation * (kernel - 1) - 1;
  int64_t out = (span + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (out - 1) * stride >= size + pad) --out;  // a window must start inside the image or its left border
  return out;
}

static Tensor pool2d(const char* op, const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
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
  Tensor y = empty_cpu({p.batch, p.c, p.oh, p.ow}, ScalarType::Char, MemoryFormat::ChannelsLast);
  p.x = nhwc.const_data_ptr();
  p.y = y.mutable_data_ptr();
  if (y.numel()) qk::pool2d(p, active_isa(), torch_threads());
  return torch::stable::contiguous(y, format_like(x));
}

static Tensor max_pool2d(const Tensor& x, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode) {
  return pool2d("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode, {});
}

static Tensor avg_pool2d(const Tensor& x, int64_t zero_point, Ints kernel_size, Ints stride, Ints padding, bool ceil_mode,
                  bool count_include_pad) {
  Pool2dProblem p;
  p.average = true;
  p.x_zero = check_zero_point("avg_pool2d", "zero_point", zero_point);
  p.count_include_pad = count_include_pad;
  return pool2d("avg_pool2d", x, kernel_size, stride, padding, {1, 1}, ceil_mode, p);
}

// ---- lookup

static Tensor lookup(const Tensor& x_any, const Tensor& table) {
  const char* op = "lookup";
  check(x_any.scalar_type() == ScalarType::Char, op, "x is ", name(x_any.scalar_type()), "; it must be int8");
  check_cpu(op, "table", table);
  check(table.scalar_type() == ScalarType::Char && table.is_contiguous() && table.numel() == 256, op, "table is ",
        name(table.scalar_type()), " ", shape(table), "; it must be contiguous int8 [256]");
  const MemoryFormat format = x_any.dim() == 4 ? format_like(x_any) : MemoryFormat::Contiguous;
  const Tensor x = format == MemoryFormat::ChannelsLast ? x_any : as_contiguous(x_any);
  Tensor y = empty_cpu(Ints(x.sizes().begin(), x.sizes().end()), ScalarType::Char, format);
  qk::lookup({x.numel(), static_cast<const int8_t*>(table.const_data_ptr()), 0, static_cast<const int8_t*>(x.const_data_ptr()),
              static_cast<int8_t*>(y.mutable_data_ptr())},
             torch_threads());
  return y;
}

static Tensor mean_pool2d(const Tensor& x) {
  const char* op = "mean_pool2d";
  check(x.dim() == 4 && x.scalar_type() == ScalarType::Float, op, "x is ", name(x.scalar_type()), " ", shape(x), "; it must be float32 [N, C, H, W]");
  MeanProblem p;
  p.batch = x.size(0), p.c = x.size(1), p.h = x.size(2), p.w = x.size(3);
  check(p.c >= 1 && p.h >= 1 && p.w >= 1, op, "x is ", shape(x), "; only the batch may be empty");
  p.x = static_cast<const float*>(x.const_data_ptr());
  for (int i = 0; i < 4; ++i) p.x_strides[i] = x.stride(i);
  Tensor y = empty_cpu({p.batch, p.c, 1, 1}, ScalarType::Float);
  p.y = static_cast<float*>(y.mutable_data_ptr());
  mean(p, torch_threads());
  return y;
}

static std::string cpu_isa() { return isa_name(active_isa()); }

}  // namespace qk::cpu_ops

STABLE_TORCH_LIBRARY_IMPL(qkernels, CPU, m) {
  m.impl("quantize", TORCH_BOX(&qk::cpu_ops::quantize));
  m.impl("quantize_dynamic", TORCH_BOX(&qk::cpu_ops::quantize_dynamic));
  m.impl("dequantize", TORCH_BOX(&qk::cpu_ops::dequantize));
  m.impl("pack_weight", TORCH_BOX(&qk::cpu_ops::pack_weight));
  m.impl("unpack_weight", TORCH_BOX(&qk::cpu_ops::unpack_weight));
  m.impl("linear", TORCH_BOX(&qk::cpu_ops::linear));
  m.impl("linear_weight_only", TORCH_BOX(&qk::cpu_ops::linear_weight_only));
  m.impl("conv2d", TORCH_BOX(&qk::cpu_ops::conv2d));
  m.impl("max_pool2d", TORCH_BOX(&qk::cpu_ops::max_pool2d));
  m.impl("avg_pool2d", TORCH_BOX(&qk::cpu_ops::avg_pool2d));
  m.impl("lookup", TORCH_BOX(&qk::cpu_ops::lookup));
  m.impl("mean_pool2d", TORCH_BOX(&qk::cpu_ops::mean_pool2d));
}

STABLE_TORCH_LIBRARY_IMPL(qkernels, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&qk::cpu_ops::cpu_isa)); }
