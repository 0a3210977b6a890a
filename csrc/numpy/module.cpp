// qkernels._core: the torch-free kernels on NumPy arrays, any instruction set by name, any thread count.
// It is how kernels are tested one by one, timed without a dispatcher, and used by processes without torch.
// bfloat16, which NumPy lacks, travels as uint16 bits: "bf16".
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "../core/layout.h"
#include "../core/padding.h"
#include "../core/scale.h"
#include "../cpu/conv2d.h"
#include "../cpu/gemm.h"
#include "../cpu/gemm_blocks.h"
#include "../cpu/pack.h"
#include "../cpu/pool.h"
#include "../cpu/quantize.h"
#include "../cpu/sentence.h"
#include "../cpu/tokens.h"
#include "program.h"
#include "threads.h"

namespace py = pybind11;

namespace qk {
namespace {

using Array = py::array;
using MaybeArray = std::optional<py::array>;
constexpr int kPlain = int(py::array::c_style) | int(py::detail::npy_api::NPY_ARRAY_ALIGNED_);  // copied where they are not
using Floats = py::array_t<float, kPlain>;
using Ints = py::array_t<int32_t, kPlain>;
using Bytes = py::array_t<int8_t, py::array::c_style>;
using Shape = std::vector<int64_t>;

template <class... Parts>
void check(bool good, const Parts&... parts) {
  if (!good) throw std::invalid_argument(sentence(parts...));
}

// ---- instruction sets and threads

std::string known_isas() {
  std::string names;
  for (int i = 0; i < kIsaCount; ++i) names += (i ? ", " : "") + std::string(isa_name(Isa(i)));
  return names;
}

Isa isa_of(const std::optional<std::string>& name) {
  if (!name) return active_isa();
  Isa isa;
  check(parse_isa(name->c_str(), &isa), "isa='", *name, "' is unknown; choose one of ", known_isas());
  check(isa_available(isa), "isa='", *name, "' does not run on this machine; the best here is ", isa_name(best_isa()));
  return isa;
}

Parallel checked_threads(int threads) {
  check(threads >= 1 && threads <= kMaxThreads, "threads=", threads, " is outside [1, ", kMaxThreads, "]");
  return plain_threads(threads);
}

class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(size_t(bytes) + 64) {}
  void* data() { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64); }

 private:
  std::vector<char> memory_;
};

// ---- arrays

DType dtype_named(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "f16") return DType::f16;
  if (name == "bf16") return DType::bf16;
  if (name == "s8") return DType::s8;
  throw std::invalid_argument("dtype '" + name + "' is unknown; choose one of f32, f16, bf16, s8");
}

py::dtype numpy_dtype(DType t) {
  switch (t) {
    case DType::f32: return py::dtype("float32");
    case DType::f16: return py::dtype("float16");
    case DType::bf16: return py::dtype("uint16");
    default: return py::dtype("int8");
  }
}

DType dtype_of(const char* what, const Array& a) {
  for (DType t : {DType::f32, DType::f16, DType::bf16, DType::s8})
    if (a.dtype().is(numpy_dtype(t)) || a.dtype().equal(numpy_dtype(t))) return t;
  throw py::type_error(std::string(what) + " has dtype " + py::str(a.dtype()).cast<std::string>() +
                       "; float32, float16, uint16 (bf16 bits) and int8 are supported");
}

Shape shape_of(const Array& a) { return Shape(a.shape(), a.shape() + a.ndim()); }

std::string shown(const Shape& s) {
  std::string out = "[";
  for (size_t i = 0; i < s.size(); ++i) out += (i ? ", " : "") + std::to_string(s[i]);
  return out + "]";
}

// The caller's output, checked, or a new one.
Array output(const MaybeArray& out, const Shape& shape, DType type) {
  if (!out) return Array(numpy_dtype(type), shape);
  check(shape_of(*out) == shape && dtype_of("out", *out) == type && (out->flags() & Array::c_style) && out->writeable(),
        "out must be a writeable, contiguous ", shown(shape), " of the output's dtype");
  return *out;
}

const float* scales(const char* what, const Floats& a, int64_t count) {
  check(a.size() == count, what, " has ", a.size(), " values; ", count, " are needed");
  for (int64_t i = 0; i < count; ++i)
    check(std::isfinite(a.data()[i]) && a.data()[i] > 0, what, " holds ", a.data()[i], "; scales are finite and above 0");
  return a.data();
}

const int32_t* zero_points(const char* what, const Ints& a, int64_t count) {
  check(a.size() == count, what, " has ", a.size(), " values; ", count, " are needed");
  for (int64_t i = 0; i < count; ++i)
    check(a.data()[i] >= -128 && a.data()[i] <= 127, what, " holds ", a.data()[i], "; zero points are in [-128, 127]");
  return a.data();
}

// ---- what linear and conv2d share

struct Options {  // keyword arguments of the epilogue
  MaybeArray residual;
  float residual_scale = 1;
  int32_t residual_zero = 0;
  std::optional<float> clamp_min, clamp_max;
  std::string out_dtype = "f32";
  float out_scale = 1;
  int32_t out_zero = 0;
  MaybeArray out;
  std::optional<std::string> isa;
  int threads = 1;
};

template <class T>
void take(py::dict& kwargs, const char* key, T& value) {
  if (!kwargs.contains(key)) return;
  value = kwargs[key].cast<T>();
  PyDict_DelItemString(kwargs.ptr(), key);
}

Options options_of(const py::kwargs& given) {
  py::dict kwargs = given.attr("copy")();
  Options o;
  take(kwargs, "residual", o.residual);
  take(kwargs, "residual_scale", o.residual_scale);
  take(kwargs, "residual_zero_point", o.residual_zero);
  take(kwargs, "clamp_min", o.clamp_min);
  take(kwargs, "clamp_max", o.clamp_max);
  take(kwargs, "out_dtype", o.out_dtype);
  take(kwargs, "output_scale", o.out_scale);
  take(kwargs, "output_zero_point", o.out_zero);
  take(kwargs, "out", o.out);
  take(kwargs, "isa", o.isa);
  take(kwargs, "threads", o.threads);
  for (auto item : kwargs) throw py::type_error("unexpected keyword argument '" + item.first.cast<std::string>() + "'");
  return o;
}

Epilogue epilogue_of(const Options& o, const Floats& weight_scale, const std::optional<Floats>& bias) {
  Epilogue e;
  e.w_scale = scales("weight_scale", weight_scale, weight_scale.size());
  if (bias) check(bias->size() == weight_scale.size(), "bias has ", bias->size(), " values; ", weight_scale.size(), " are needed");
  e.bias = bias ? bias->data() : nullptr;
  if (o.clamp_min) e.lo = *o.clamp_min;
  if (o.clamp_max) e.hi = *o.clamp_max;
  check(is_scale(o.out_scale), "output_scale is ", o.out_scale, "; scales and their inverses are finite and above 0");
  check(o.out_zero >= -128 && o.out_zero <= 127, "output_zero_point is ", o.out_zero, "; zero points are in [-128, 127]");
  e.out_type = dtype_named(o.out_dtype);
  e.out_inv_scale = 1.0f / o.out_scale;
  e.out_zero = o.out_zero;
  e.residual_scale = o.residual_scale;
  e.residual_zero = o.residual_zero;
  return e;
}

void set_residual(const Options& o, const Shape& shape, int64_t n, Epilogue& e) {
  if (!o.residual) return;
  check(shape_of(*o.residual) == shape && (o.residual->flags() & Array::c_style), "residual must be a contiguous ", shown(shape));
  e.residual = o.residual->data();
  e.residual_type = dtype_of("residual", *o.residual);
  e.residual_stride = n;
}

Range input_scales(DType x_type, const std::optional<Floats>& scale, const std::optional<Ints>& zero, bool symmetric,
                   int64_t count, int64_t rows_each, int64_t rows, Epilogue& e) {
  if (!scale) {
    check(x_type != DType::s8, "x is int8, so input_scale and input_zero_point are needed");
    return symmetric ? Range::dynamic_symmetric : Range::dynamic_asymmetric;
  }
  check(bool(zero), "input_zero_point is needed with input_scale");
  check(scale->size() == 1 || scale->size() == count, "input_scale has ", scale->size(), " values; 1 or ", count, " are needed");
  e.x_scale = scales("input_scale", *scale, scale->size());
  e.x_zero = zero_points("input_zero_point", *zero, scale->size());
  e.rows_per_scale = std::max<int64_t>(scale->size() == count && count != 1 ? rows_each : rows, 1);
  return Range::given;
}

// ---- operators

Bytes pack(const Array& weight_any, int64_t groups) {
  check(weight_any.ndim() == 2 || weight_any.ndim() == 4, "weight has ", weight_any.ndim(), " axes; 2 or 4 are supported");
  check(dtype_of("weight", weight_any) == DType::s8, "weight must be int8");
  const Bytes weight(weight_any);
  const bool conv = weight.ndim() == 4;
  const int64_t oc = weight.shape(0), c = weight.shape(1), kh = conv ? weight.shape(2) : 1, kw = conv ? weight.shape(3) : 1;
  check(oc >= 1 && groups >= 1 && oc % groups == 0, "groups=", groups, " does not divide the ", oc, " output channels");
  check(c * kh * kw >= 1 && c * kh * kw <= kMaxK, "K=", c * kh * kw, " is outside [1, ", kMaxK, "]");
  Bytes packed(weight_layout(oc, c, kh, kw, groups).bytes());
  check(pack_weight(weight.data(), oc, c, kh, kw, groups, packed.mutable_data()), "weight holds -128; int8 weights are in [-127, 127]");
  return packed;
}

Bytes unpack(const Bytes& packed, const Shape& size, int64_t groups) {
  check(size.size() == 2 || size.size() == 4, "size has ", size.size(), " axes; 2 or 4 are supported");
  const int64_t kh = size.size() == 4 ? size[2] : 1, kw = size.size() == 4 ? size[3] : 1;
  check(groups >= 1 && size[0] >= 1 && size[0] % groups == 0 && size[1] * kh * kw >= 1 && size[1] * kh * kw <= kMaxK, "no weight ", shown(size), " in ", groups, " groups exists");
  check(weight_layout(size[0], size[1], kh, kw, groups).matches(packed.data(), packed.size()), "packed does not hold a weight ", shown(size));
  Bytes weight(size);
  unpack_weight(packed.data(), size[0], size[1], kh, kw, groups, weight.mutable_data());
  return weight;
}

GemmProblem linear_problem(const Array& x, const Bytes& weight, const Floats& weight_scale) {
  GemmProblem p;
  p.x_type = dtype_of("x", x);
  check(x.ndim() == 2 && x.strides(1) == x.itemsize() && x.strides(0) % x.itemsize() == 0, "x must be [M, K] with each row contiguous");
  p.m = x.shape(0), p.k = x.shape(1), p.n = weight_scale.size();
  check(p.k >= 1 && p.k <= kMaxK && p.n >= 1, "K=", p.k, " is outside [1, ", kMaxK, "] or N=", p.n, " is 0");
  check(PackedLayout{1, p.n, p.k}.matches(weight.data(), weight.size()), "weight holds ", weight.size(), " bytes, which is not a packed [N=", p.n, ", K=", p.k, "] weight");
  p.x = x.data();
  p.x_stride = x.strides(0) / x.itemsize();
  p.weight = weight.data();
  return p;
}

Array linear(const Array& x, const Bytes& weight, const Floats& weight_scale, const std::optional<Floats>& bias,
             const std::optional<Floats>& input_scale, const std::optional<Ints>& input_zero_point, bool symmetric,
             const py::kwargs& kwargs) {
  const Options o = options_of(kwargs);
  GemmProblem p = linear_problem(x, weight, weight_scale);
  p.epilogue = epilogue_of(o, weight_scale, bias);
  p.range = input_scales(p.x_type, input_scale, input_zero_point, symmetric, p.m, 1, p.m, p.epilogue);
  set_residual(o, {p.m, p.n}, p.n, p.epilogue);
  Array y = output(o.out, {p.m, p.n}, p.epilogue.out_type);
  p.c = y.mutable_data();
  p.c_stride = p.n;
  const Isa isa = isa_of(o.isa);
  const Parallel threads = checked_threads(o.threads);
  Scratch scratch(gemm_workspace(p, isa, o.threads));
  py::gil_scoped_release unlocked;
  gemm(p, isa, threads, scratch.data());
  return y;
}

Array linear_weight_only(const Array& x, const Bytes& weight, const Floats& weight_scale, const std::optional<Floats>& bias,
                         const py::kwargs& kwargs) {
  const Options o = options_of(kwargs);
  WeightOnlyProblem p = linear_problem(x, weight, weight_scale);
  check(p.x_type != DType::s8, "x is int8; use linear for int8 activations");
  p.epilogue = epilogue_of(o, weight_scale, bias);
  set_residual(o, {p.m, p.n}, p.n, p.epilogue);
  Array y = output(o.out, {p.m, p.n}, p.epilogue.out_type);
  p.c = y.mutable_data();
  p.c_stride = p.n;
  const Isa isa = isa_of(o.isa);
  const Parallel threads = checked_threads(o.threads);
  Scratch scratch(weight_only_workspace(p, o.threads));
  py::gil_scoped_release unlocked;
  weight_only(p, isa, threads, scratch.data());
  return y;
}

PadMode pad_mode_of(const std::string& mode) {
  if (mode == "zeros") return PadMode::zeros;
  if (mode == "reflect") return PadMode::reflect;
  if (mode == "replicate") return PadMode::replicate;
  if (mode == "circular") return PadMode::circular;
  throw std::invalid_argument("padding_mode='" + mode + "' is unknown; choose one of zeros, reflect, replicate, circular");
}

using Pair = std::array<int64_t, 2>;

// x [N, H, W, C] with any strides -> y [N, OH, OW, OC].
Array conv2d_nhwc(const Array& x, const Bytes& weight, const Floats& weight_scale, const std::optional<Floats>& bias,
                  const std::optional<Floats>& input_scale, const std::optional<Ints>& input_zero_point, bool symmetric,
                  Pair kernel_size, Pair stride, std::array<int64_t, 4> padding, Pair dilation, int64_t groups,
                  const std::string& padding_mode, const py::kwargs& kwargs) {
  const Options o = options_of(kwargs);
  Conv2dProblem p;
  p.x_type = dtype_of("x", x);
  check(x.ndim() == 4, "x has ", x.ndim(), " axes; it must be [N, H, W, C]");
  p.batch = x.shape(0), p.h = x.shape(1), p.w = x.shape(2), p.c = x.shape(3), p.oc = weight_scale.size();
  p.kh = kernel_size[0], p.kw = kernel_size[1], p.stride_h = stride[0], p.stride_w = stride[1];
  p.dilation_h = dilation[0], p.dilation_w = dilation[1], p.groups = groups;
  p.pad_left = padding[0], p.pad_right = padding[1], p.pad_top = padding[2], p.pad_bottom = padding[3];
  p.pad_mode = pad_mode_of(padding_mode);
  check(p.c >= 1 && p.oc >= 1 && p.h >= 1 && p.w >= 1, "x is ", shown(shape_of(x)), " and there are ", p.oc, " output channels; only the batch may be empty");
  check(groups >= 1 && p.c % groups == 0 && p.oc % groups == 0, "groups=", groups, " must divide the ", p.c, " input and ", p.oc, " output channels");
  check(p.kh >= 1 && p.kw >= 1 && p.stride_h >= 1 && p.stride_w >= 1 && p.dilation_h >= 1 && p.dilation_w >= 1, "kernel_size, stride and dilation are at least 1");
  for (int64_t pad : padding) check(pad >= 0, "padding holds ", pad, "; it must not be negative");
  check(p.padded_h() >= p.dilation_h * (p.kh - 1) + 1 && p.padded_w() >= p.dilation_w * (p.kw - 1) + 1, "the kernel is larger than the padded input");
  check(fits(p.pad_mode, std::max(p.pad_top, p.pad_bottom), p.h) && fits(p.pad_mode, std::max(p.pad_left, p.pad_right), p.w), padding_mode, " padding does not fit the input");
  check(weight_layout(p.oc, p.c / groups, p.kh, p.kw, groups).matches(weight.data(), weight.size()), "weight does not fit the convolution; pack it with the same groups");
  p.x = x.data();
  const int order[4] = {0, 3, 1, 2};
  for (int i = 0; i < 4; ++i) {
    check(x.strides(order[i]) % x.itemsize() == 0, "x has strides that are no multiple of its ", x.itemsize(), " bytes an element");
    p.x_strides[i] = x.strides(order[i]) / x.itemsize();
  }
  p.weight = weight.data();
  p.epilogue = epilogue_of(o, weight_scale, bias);
  const int64_t pixels = p.oh() * p.ow();
  p.range = input_scales(p.x_type, input_scale, input_zero_point, symmetric, p.batch, pixels, p.batch * pixels, p.epilogue);
  const Shape shape{p.batch, p.oh(), p.ow(), p.oc};
  set_residual(o, shape, p.oc, p.epilogue);
  Array y = output(o.out, shape, p.epilogue.out_type);
  p.y = y.mutable_data();
  if (y.size() == 0) return y;
  const Isa isa = isa_of(o.isa);
  const Parallel threads = checked_threads(o.threads);
  Scratch scratch(conv2d_workspace(p, isa, o.threads));
  py::gil_scoped_release unlocked;
  conv2d(p, isa, threads, scratch.data());
  return y;
}

// x [rows, cols] f32, f16 or bf16; scale None finds the ranges.
py::tuple quantize_rows(const Array& x, const std::optional<Floats>& scale, const std::optional<Ints>& zero_point,
                        bool per_row, bool symmetric, const std::optional<std::string>& isa, int threads) {
  QuantizeProblem p;
  p.x_type = dtype_of("x", x);
  check(x.ndim() == 2 && (x.flags() & Array::c_style) && p.x_type != DType::s8, "x must be a contiguous float [rows, cols]");
  p.rows = x.shape(0), p.cols = x.shape(1), p.x = x.data();
  const int64_t count = scale ? scale->size() : per_row ? p.rows : 1;
  check(count == 1 || count == p.rows, "scale has ", count, " values; 1 or ", p.rows, " are needed");
  Floats s(count);
  Ints z(count);
  if (scale) {
    check(bool(zero_point), "zero_point is needed with scale");
    std::copy_n(scales("scale", *scale, count), count, s.mutable_data());
    std::copy_n(zero_points("zero_point", *zero_point, count), count, z.mutable_data());
  } else {
    p.range = symmetric ? Range::dynamic_symmetric : Range::dynamic_asymmetric;
    std::fill_n(s.mutable_data(), count, 1.0f);  // of nothing
    std::fill_n(z.mutable_data(), count, 0);
  }
  p.rows_per_scale = count == p.rows && count != 1 ? 1 : std::max<int64_t>(p.rows, 1);
  p.scale = s.mutable_data(), p.zero = z.mutable_data();
  Bytes q({p.rows, p.cols});
  p.q = q.mutable_data();
  quantize(p, isa_of(isa), checked_threads(threads));
  return py::make_tuple(q, s, z);
}

Array dequantize_rows(const Bytes& q, const Floats& scale, const Ints& zero_point, const std::string& dtype,
                      const std::optional<std::string>& isa, int threads) {
  DequantizeProblem p;
  check(q.ndim() == 2, "q must be [rows, cols]");
  p.rows = q.shape(0), p.cols = q.shape(1);
  check(scale.size() == 1 || scale.size() == p.rows, "scale has ", scale.size(), " values; 1 or ", p.rows, " are needed");
  p.rows_per_scale = scale.size() == p.rows && p.rows != 1 ? 1 : std::max<int64_t>(p.rows, 1);
  p.q = q.data(), p.scale = scales("scale", scale, scale.size()), p.zero = zero_points("zero_point", zero_point, scale.size());
  p.y_type = dtype_named(dtype);
  Array y(numpy_dtype(p.y_type), Shape{p.rows, p.cols});
  p.y = y.mutable_data();
  dequantize(p, isa_of(isa), checked_threads(threads));
  return y;
}

// x [N, H, W, C] int8 -> [N, out_size, C].
Bytes pool2d_nhwc(const Bytes& x, Pair out_size, Pair kernel_size, Pair stride, Pair padding, Pair dilation, bool average,
                  bool count_include_pad, int32_t zero_point, const std::optional<std::string>& isa, int threads) {
  check(x.ndim() == 4, "x must be [N, H, W, C]");
  Pool2dProblem p;
  p.batch = x.shape(0), p.h = x.shape(1), p.w = x.shape(2), p.c = x.shape(3), p.oh = out_size[0], p.ow = out_size[1];
  p.kh = kernel_size[0], p.kw = kernel_size[1], p.stride_h = stride[0], p.stride_w = stride[1];
  p.pad_h = padding[0], p.pad_w = padding[1], p.dilation_h = dilation[0], p.dilation_w = dilation[1];
  p.average = average, p.count_include_pad = count_include_pad, p.x_zero = zero_point;
  for (const Pair& extent : {kernel_size, stride, dilation})
    check(extent[0] >= 1 && extent[1] >= 1, "kernel_size, stride and dilation are at least 1");
  check(std::min(out_size[0], out_size[1]) >= 0 && std::min(padding[0], padding[1]) >= 0, "out_size and padding must not be negative");
  Bytes y({p.batch, p.oh, p.ow, p.c});
  p.x = x.data(), p.y = y.mutable_data();
  pool2d(p, isa_of(isa), checked_threads(threads));
  return y;
}

// ---- tokens

Epilogue output_of(const Options& o) {
  check(!o.residual && !o.clamp_min && !o.clamp_max, "a residual or clamp is not taken here");
  return epilogue_of(o, Floats(), std::nullopt);
}

Array layer_norm_rows(const Floats& x, const Floats& weight, const Floats& bias, float epsilon, const py::kwargs& kwargs) {
  const Options o = options_of(kwargs);
  check(x.ndim() == 2 && x.shape(1) >= 1, "x must be [rows, C]");
  LayerNormProblem p;
  p.rows = x.shape(0), p.c = x.shape(1);
  check(weight.size() == p.c && bias.size() == p.c, "weight has ", weight.size(), " values and bias ", bias.size(), "; ", p.c, " are needed");
  check(std::isfinite(epsilon) && epsilon >= 0, "epsilon is ", epsilon, "; it is finite and at least 0");
  p.x = x.data(), p.weight = weight.data(), p.bias = bias.data(), p.epsilon = epsilon;
  p.epilogue = output_of(o);
  Array y = output(o.out, shape_of(x), p.epilogue.out_type);
  p.y = y.mutable_data();
  const Isa isa = isa_of(o.isa);
  const Parallel threads = checked_threads(o.threads);
  py::gil_scoped_release unlocked;
  layer_norm(p, isa, threads);
  return y;
}

// x [N, T, 3 * heads * width] -> [N, T, heads * width].
Array attention_tokens(const Floats& x, int64_t heads, float exponent, const py::kwargs& kwargs) {
  const Options o = options_of(kwargs);
  check(x.ndim() == 3 && x.shape(1) >= 1, "x must be [N, T, 3 * C] with T of 1 or more");
  check(heads >= 1 && x.shape(2) >= 1 && x.shape(2) % (3 * heads) == 0, "x has ", x.shape(2), " features, no multiple of 3 times heads=", heads);
  check(std::isfinite(exponent) && exponent > 0, "exponent is ", exponent, "; it is finite and above 0");
  AttentionProblem p;
  p.batch = x.shape(0), p.tokens = x.shape(1), p.heads = heads, p.width = x.shape(2) / 3 / heads;
  p.x = x.data(), p.exponent = exponent;
  p.epilogue = output_of(o);
  Array y = output(o.out, {p.batch, p.tokens, heads * p.width}, p.epilogue.out_type);
  p.y = y.mutable_data();
  const Isa isa = isa_of(o.isa);
  const Parallel threads = checked_threads(o.threads);
  Scratch scratch(attention_workspace(p, o.threads));
  py::gil_scoped_release unlocked;
  attention(p, isa, threads, scratch.data());
  return y;
}

// ---- what runs here

py::dict cpu_features() {
  py::dict features;
  for (int i = 0; i < kIsaCount; ++i)
    if (const Isa isa = Isa(i); kernels_of(isa).isa == isa && isa != Isa::amx_emulated) features[isa_name(isa)] = isa_available(isa);
  return features;
}

py::list kernel_table() {
  py::list rows;
  for (int i = 0; i < kIsaCount; ++i) {
    const Isa isa = Isa(i);
    const Kernels& k = kernels_of(isa);
    if (k.isa != isa) continue;
    py::dict row;
    row["isa"] = isa_name(isa);
    row["gemm"] = k.gemm_name;
    row["row_tile"] = k.mr;
    row["available"] = isa_available(isa);
    rows.append(row);
  }
  return rows;
}

py::dict chosen_kernel(int64_t m, int64_t n, int64_t k, int64_t groups, const std::optional<std::string>& isa, int threads) {
  check(m >= 0 && n >= 1 && k >= 1 && k <= kMaxK && groups >= 1, "m=", m, ", n=", n, ", k=", k, ", groups=", groups, " is no problem a kernel takes");
  const GemmPlan plan = plan_packed_gemm(m, n * 4, {groups, n, k}, kernels_for(isa_of(isa), m), threads);
  py::dict d;
  d["kernel"] = plan.kernels->gemm_name;
  d["isa"] = isa_name(plan.kernels->isa);
  d["block_rows"] = plan.block_rows;
  d["block_cols"] = plan.block_cols;
  d["tasks"] = plan.tasks();
  d["threads"] = plan.workers;
  return d;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The best of five: what the cores can do, not what they do on average.
double peak_gops(const std::optional<std::string>& isa, int threads, double seconds) {
  check(threads >= 1 && threads <= kMaxThreads && seconds > 0, "threads=", threads, " and seconds=", seconds, " must be positive, threads at most 256");
  const auto peak = kernels_of(isa_of(isa)).peak;
  py::gil_scoped_release free;
  int64_t rounds = 1000;
  double best = 0;
  for (int i = 0; i < 5;) {
    std::atomic<int64_t> operations{0};
    const auto start = std::chrono::steady_clock::now();
    checked_threads(threads)(threads, [&](int64_t) { operations += peak(rounds); });
    const double took = seconds_since(start);
    if (took < seconds / 5 && rounds < int64_t(1) << 40) {
      rounds *= 2;
      continue;
    }
    best = std::max(best, double(operations) / took / 1e9);
    ++i;
  }
  return best;
}

double read_gbytes(int64_t bytes, int threads, double seconds) {
  check(bytes >= 4096 && threads >= 1 && threads <= kMaxThreads && seconds > 0, "bytes=", bytes, ", threads=", threads,
        " and seconds=", seconds, " are too few; 4096 bytes, one thread and some time are needed");
  const Kernels& k = kernels_of(active_isa());
  py::gil_scoped_release free;
  std::vector<float> memory(size_t(bytes / 4), 1.0f);
  double best = 0;
  const auto begin = std::chrono::steady_clock::now();
  while (seconds_since(begin) < seconds) {
    const int64_t passes = std::max<int64_t>(1, (int64_t(64) << 20) / bytes);
    const auto start = std::chrono::steady_clock::now();
    checked_threads(threads)(threads, [&](int64_t i) {
      const Share mine = share(bytes / 64, threads, i);
      for (int64_t pass = 0; pass < passes; ++pass)
        k.extremes(memory.data() + mine.begin * 16, DType::f32, (mine.end - mine.begin) * 16);
    });
    best = std::max(best, double(bytes) * double(passes) / seconds_since(start) / 1e9);
  }
  return best;
}

}  // namespace
}  // namespace qk

PYBIND11_MODULE(_core, m) {
  using namespace pybind11::literals;
  m.doc() = "Torch-free int8 kernels on NumPy arrays.";
  m.attr("LAYOUT_VERSION") = qk::kLayoutVersion;
  m.attr("MAX_K") = qk::kMaxK;
  m.def("cpu_features", &qk::cpu_features, "Instruction sets and whether this machine runs them.");
  m.def("active_isa", [] { return qk::isa_name(qk::active_isa()); }, "The set in use: the best one, lowered by QKERNELS_MAX_ISA.");
  m.def("kernels", &qk::kernel_table, "The kernel table, one dict an instruction set.");
  m.def("chosen_kernel", &qk::chosen_kernel, "m"_a, "n"_a, "k"_a, "groups"_a = 1, "isa"_a = py::none(), "threads"_a = 1,
        "Kernel and blocking for C[m, n] += x[m, k] * w[n, k].");
  m.def("peak_gops", &qk::peak_gops, "isa"_a = py::none(), "threads"_a = 1, "seconds"_a = 0.5,
        "1e9 int8 operations a second of the matrix kernel's multiply instruction alone, a multiply-add counting as two.");
  m.def("read_gbytes", &qk::read_gbytes, "bytes"_a, "threads"_a = 1, "seconds"_a = 0.5,
        "1e9 bytes a second read from a buffer of that size, shared by the threads.");
  m.def("pack_weight", &qk::pack, "weight"_a, "groups"_a = 1, "int8 [N, K] or [OC, C/groups, KH, KW] to the packed layout.");
  m.def("unpack_weight", &qk::unpack, "packed"_a, "size"_a, "groups"_a = 1, "The exact inverse of pack_weight.");
  m.def("linear", &qk::linear, "x"_a, "weight"_a, "weight_scale"_a, "bias"_a = py::none(), "input_scale"_a = py::none(),
        "input_zero_point"_a = py::none(), "symmetric"_a = true,
        "x [M, K] int8 or float by a packed weight; keywords: residual, clamp_min, clamp_max, out_dtype, output_scale, "
        "output_zero_point, out, isa, threads.");
  m.def("linear_weight_only", &qk::linear_weight_only, "x"_a, "weight"_a, "weight_scale"_a, "bias"_a = py::none(),
        "x [M, K] float by a packed weight, in float; keywords as linear.");
  m.def("conv2d", &qk::conv2d_nhwc, "x"_a, "weight"_a, "weight_scale"_a, "bias"_a, "input_scale"_a, "input_zero_point"_a,
        "symmetric"_a, "kernel_size"_a, "stride"_a, "padding"_a, "dilation"_a, "groups"_a, "padding_mode"_a,
        "x [N, H, W, C], any strides; padding left, right, top, bottom; keywords as linear.");
  m.def("quantize", &qk::quantize_rows, "x"_a, "scale"_a = py::none(), "zero_point"_a = py::none(), "per_row"_a = false,
        "symmetric"_a = true, "isa"_a = py::none(), "threads"_a = 1, "-> (q, scale, zero_point); without scale, ranges are found.");
  m.def("dequantize", &qk::dequantize_rows, "q"_a, "scale"_a, "zero_point"_a, "dtype"_a = "f32", "isa"_a = py::none(), "threads"_a = 1);
  m.def("layer_norm", &qk::layer_norm_rows, "x"_a, "weight"_a, "bias"_a, "epsilon"_a,
        "x [rows, C] float32; keywords: out_dtype, output_scale, output_zero_point, out, isa, threads.");
  m.def("attention", &qk::attention_tokens, "x"_a, "heads"_a, "exponent"_a,
        "x [N, T, 3 * C] float32, queries, keys and values; exponent: log2(e) times the scale; keywords as layer_norm.");
  qk::bind_program(m);
  m.def("pool2d", &qk::pool2d_nhwc, "x"_a, "out_size"_a, "kernel_size"_a, "stride"_a, "padding"_a, "dilation"_a, "average"_a,
        "count_include_pad"_a = true, "zero_point"_a = 0, "isa"_a = py::none(), "threads"_a = 1);
}
