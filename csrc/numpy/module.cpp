// qkernels._core: the torch-free kernels on NumPy arrays, any instruction set by name, any thread count.
// It is how kernels are tested one by one, timed without a dispatcher, and used by processes without torch.
#include <array>
#include <atomic>
#include <chrono>

#include "../cpu/attention.h"
#include "../cpu/conv2d.h"
#include "../cpu/dispatch.h"
#include "../cpu/gemm.h"
#include "../cpu/move.h"
#include "../cpu/pack.h"
#include "../cpu/norms.h"
#include "../front/problems.h"
#include "arrays.h"
#include "program.h"
#include "threads.h"

namespace qk {
namespace {

using Bytes = py::array_t<int8_t, py::array::c_style>;

class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(size_t(bytes) + kAlignment) {}
  void* data() { return aligned(memory_.data()); }

 private:
  std::vector<char> memory_;
};

// What linear and conv2d share: the views of their arrays, which live as long as it does.
struct Call {
  View x, weight, weight_scale, bias, scale, zero, residual;
  Options options;
  Operands operands;

  Call(const py::array& x_, const py::array& weight_, const py::array& weight_scale_, const MaybeArray& bias_, const MaybeArray& scale_,
       const MaybeArray& zero_, bool symmetric, const py::kwargs& kwargs, bool images)
      : x(x_), weight(weight_), weight_scale(weight_scale_, true), bias(bias_), scale(scale_), zero(zero_),
        residual(kwargs.contains("residual") ? kwargs["residual"].cast<MaybeArray>() : MaybeArray()), options(options_of(kwargs)) {
    if (images) x.as_images(), residual.as_images();
    const auto given = [](const MaybeArray& a, const View& v) { return a ? std::optional<Array>(*v) : std::nullopt; };
    operands = {*x, *weight, *weight_scale, given(bias_, bias), given(scale_, scale), given(zero_, zero), symmetric};
    options.epilogue.residual = given(options.residual, residual);
  }
};

// A copy of the residual, rows of N values as the caller gave them, where it does not lie as the kernel reads it.
py::object held_residual(const Options& o, Epilogue& e) {
  if (!o.residual || e.residual) return py::none();
  const py::array copy = contiguous(*o.residual);
  e.residual = copy.data();
  return copy;
}

// ---- operators

Bytes pack(const py::array& weight_any, int64_t groups) {
  const View weight(contiguous(weight_any));
  const WeightSize w = weight_to_pack(*weight, groups);
  const int64_t bytes = w.layout().bytes();
  const Bytes memory(bytes + kAlignment - 1);  // NumPy's own begin 16 bytes into a line
  Bytes packed(bytes, static_cast<const int8_t*>(aligned(const_cast<int8_t*>(memory.data()))), memory);
  check_packed_range(pack_weight(weight->as<int8_t>(), w.oc, w.c, w.kh, w.kw, groups, packed.mutable_data()));
  return packed;
}

Bytes unpack(const py::array& packed, const Sizes& size, int64_t groups) {
  const View bytes(packed);
  const WeightSize w = weight_to_unpack(*bytes, size, groups);
  Bytes weight(size);
  unpack_weight(bytes->as<int8_t>(), w.oc, w.c, w.kh, w.kw, groups, weight.mutable_data());
  return weight;
}

py::array linear(const py::array& x_any, const py::array& weight, const py::array& weight_scale, const MaybeArray& bias, const MaybeArray& input_scale,
                 const MaybeArray& input_zero_point, bool symmetric, const py::kwargs& kwargs) {
  const py::array x = rows_lie(*View(x_any)) ? x_any : contiguous(x_any);
  const Call call(x, weight, weight_scale, bias, input_scale, input_zero_point, symmetric, kwargs, false);
  const Options& o = call.options;
  GemmProblem p = linear_problem(call.operands, o.epilogue);
  const py::object held = held_residual(o, p.epilogue);
  py::array y = output(o.out, with_last(*call.x, p.n), p.epilogue.out_type);
  p.c = y.mutable_data();
  const Isa isa = isa_of(o.isa);
  const Parallel threads = checked_threads(o.threads);
  const GemmPlan plan = plan_linear(p, isa, o.threads);
  Scratch scratch(plan.bytes);
  py::gil_scoped_release unlocked;
  gemm(p, plan, threads, scratch.data());
  return y;
}

py::array linear_weight_only(const py::array& x_any, const py::array& weight, const py::array& weight_scale, const MaybeArray& bias, const py::kwargs& kwargs) {
  const py::array x = rows_lie(*View(x_any)) ? x_any : contiguous(x_any);
  const Call call(x, weight, weight_scale, bias, {}, {}, true, kwargs, false);
  const Options& o = call.options;
  WeightOnlyProblem p = weight_only_problem(call.operands, o.epilogue);
  const py::object held = held_residual(o, p.epilogue);
  py::array y = output(o.out, with_last(*call.x, p.n), p.epilogue.out_type);
  p.c = y.mutable_data();
  const Isa isa = isa_of(o.isa);
  const Parallel threads = checked_threads(o.threads);
  Scratch scratch(weight_only_workspace(p, o.threads));
  py::gil_scoped_release unlocked;
  weight_only(p, isa, threads, scratch.data());
  return y;
}

// "direct" or "winograd"; none: as QKERNELS_CONV_PATH says.
ConvWay way_of(const std::optional<std::string>& name) {
  if (!name) return asked_way();
  for (int i = 0; kConvWayNames[i]; ++i)
    if (*name == kConvWayNames[i]) return ConvWay(i);
  refuse("path='", *name, "' is unknown; choose one of counted, direct, winograd");
}

// A convolution's arrays and its problem, all but y.
struct ConvCall : Call {
  Conv2dProblem p;

  ConvCall(const py::array& x, const py::array& weight, const py::array& weight_scale, const MaybeArray& bias, const MaybeArray& input_scale,
           const MaybeArray& input_zero_point, bool symmetric, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
           const Sizes& dilation, int64_t groups, const std::string& padding_mode, const py::kwargs& kwargs)
      : Call(x, weight, weight_scale, bias, input_scale, input_zero_point, symmetric, kwargs, true),
        p(conv2d_problem(operands, {kernel_size, stride, padding, dilation}, groups, padding_mode.c_str(), options.epilogue)) {}
};

// x [N, H, W, C] with any strides -> y [N, OH, OW, OC].
template <class... Arguments>
py::array conv2d_nhwc(const Arguments&... arguments) {
  ConvCall call(arguments...);
  const Options& o = call.options;
  Conv2dProblem& p = call.p;
  const py::object held = held_residual(o, p.epilogue);
  py::array y = output(o.out, {p.batch, p.oh(), p.ow(), p.oc}, p.epilogue.out_type);
  p.y = y.mutable_data();
  if (p.batch == 0) return y;
  const Isa isa = isa_of(o.isa);
  const Parallel threads = checked_threads(o.threads);
  const ConvPlan plan = plan_conv2d(p, isa, o.threads, way_of(o.path));
  Scratch scratch(plan.bytes);
  py::gil_scoped_release unlocked;
  conv2d(p, plan, threads, scratch.data());
  return y;
}

// How the same call would be taken.
template <class... Arguments>
py::dict conv2d_plan(const Arguments&... arguments) {
  const ConvCall call(arguments...);
  checked_threads(call.options.threads);
  const ConvPlan plan = plan_conv2d(call.p, isa_of(call.options.isa), call.options.threads, way_of(call.options.path));
  py::list parts;
  for (const ConvPart* part : {&plan.alone[0], &plan.alone[1], &plan.shared[0], &plan.shared[1]}) {
    if (part->images == 0) continue;
    py::dict d;
    d["images"] = part->images, d["threads"] = part->threads, d["bytes"] = part->bytes;
    py::list pieces;  // of the workspace: offset and bytes
    for (const Piece& piece : pieces_of(call.p, plan, *part)) pieces.append(py::make_tuple(piece.name, piece.at, piece.bytes));
    d["pieces"] = pieces;
    parts.append(d);
  }
  py::dict d;
  d["path"] = kConvPathNames[int(plan.path)];
  d["writes_image"] = plan.writes_image, d["mask"] = int(plan.mask), d["repeat"] = plan.repeat;
  d["each"] = plan.each, d["bytes"] = plan.bytes, d["weight_bytes"] = plan.weight_bytes, d["parts"] = parts, d["text"] = shown(plan);
  return d;
}

using ConvFunction = py::array(const py::array&, const py::array&, const py::array&, const MaybeArray&, const MaybeArray&, const MaybeArray&, const bool&,
                               const Sizes&, const Sizes&, const Sizes&, const Sizes&, const int64_t&, const std::string&, const py::kwargs&);
using ConvPlanFunction = py::dict(const py::array&, const py::array&, const py::array&, const MaybeArray&, const MaybeArray&, const MaybeArray&, const bool&,
                                  const Sizes&, const Sizes&, const Sizes&, const Sizes&, const int64_t&, const std::string&, const py::kwargs&);

// x [..., cols] f32, f16 or bf16; scale None finds the ranges.
py::tuple quantize_rows(const py::array& x_any, const MaybeArray& scale, const MaybeArray& zero_point, bool per_row, bool symmetric,
                        const std::optional<std::string>& isa, int threads) {
  const View x(contiguous(x_any)), s(scale), z(zero_point);
  check(scale.has_value() == zero_point.has_value(), "scale and zero_point come together; only one was given");
  QuantizeProblem p = scale ? quantize_problem(*x, *s, *z) : quantize_dynamic_problem(*x, per_row, symmetric);
  Bytes q(Sizes(x->sizes, x->sizes + x->axes));
  p.q = q.mutable_data();
  if (scale) {
    quantize(p, isa_of(isa), checked_threads(threads));
    return py::make_tuple(q, *scale, *zero_point);
  }
  const int64_t count = per_row ? p.rows : 1;
  py::array_t<float> found(count);
  py::array_t<int32_t> zeros(count);
  p.scale = found.mutable_data(), p.zero = zeros.mutable_data();
  std::fill_n(p.scale, count, 1.0f);  // of nothing
  std::fill_n(p.zero, count, 0);
  quantize(p, isa_of(isa), checked_threads(threads));
  return py::make_tuple(q, found, zeros);
}

py::array dequantize_rows(const py::array& q_any, const py::array& scale, const py::array& zero_point, const std::string& dtype,
                          const std::optional<std::string>& isa, int threads) {
  const View q(contiguous(q_any)), s(scale, true), z(zero_point, true);
  DequantizeProblem p = dequantize_problem(*q, *s, *z, type_named(dtype));
  py::array y(numpy_dtype(p.y_type), Sizes(q->sizes, q->sizes + q->axes));
  p.y = y.mutable_data();
  dequantize(p, isa_of(isa), checked_threads(threads));
  return y;
}

// x [N, H, W, C] int8 -> [N, OH, OW, C].
Bytes run_pool(Pool2dProblem p, const std::optional<std::string>& isa, int threads) {
  Bytes y({p.batch, p.oh, p.ow, p.c});
  p.y = y.mutable_data();
  pool2d(p, isa_of(isa), checked_threads(threads));
  return y;
}

Bytes max_pool2d_nhwc(const py::array& x_any, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                      bool ceil_mode, const std::optional<std::string>& isa, int threads) {
  View x(contiguous(x_any));
  return run_pool(max_pool2d_problem(*x.as_images(), {kernel_size, stride, padding, dilation}, ceil_mode), isa, threads);
}

Bytes avg_pool2d_nhwc(const py::array& x_any, int64_t zero_point, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                      bool ceil_mode, bool count_include_pad, const std::optional<std::string>& isa, int threads) {
  View x(contiguous(x_any));
  return run_pool(avg_pool2d_problem(*x.as_images(), {kernel_size, stride, padding, {}}, ceil_mode, zero_point, count_include_pad), isa, threads);
}

// x [N, H, W, C] float32, any strides -> [N, 1, 1, C].
py::array mean_pool2d_nhwc(const py::array& x_any, int threads) {
  View x(x_any, true);
  MeanProblem p = mean_pool2d_problem(*x.as_images());
  py::array_t<float> y({p.batch, int64_t(1), int64_t(1), p.c});
  p.y = y.mutable_data();
  mean(p, checked_threads(threads));
  return y;
}

Bytes lookup_any(const py::array& x_any, const py::array& table_any, const std::optional<std::string>& isa, int threads) {
  const View x(contiguous(x_any)), table(table_any);
  LookupProblem p = lookup_problem(*x, *table);
  Bytes y(Sizes(x->sizes, x->sizes + x->axes));
  p.y = y.mutable_data();
  lookup(p, isa_of(isa), checked_threads(threads));
  return y;
}

// ---- tokens

py::array layer_norm_rows(const py::array& x_any, const py::array& weight_any, const py::array& bias_any, double epsilon, const py::kwargs& kwargs) {
  Options o = options_of(kwargs);
  const View x(contiguous(x_any)), weight(weight_any, true), bias(bias_any, true), residual(o.residual);
  if (o.residual) o.epilogue.residual = *residual;
  LayerNormProblem p = layer_norm_problem(*x, *weight, *bias, epsilon, o.epilogue);
  py::array y = output(o.out, {p.rows, p.c}, p.epilogue.out_type);
  p.y = y.mutable_data();
  const Isa isa = isa_of(o.isa);
  const Parallel threads = checked_threads(o.threads);
  py::gil_scoped_release unlocked;
  layer_norm(p, isa, threads, nullptr);
  return y;
}

// x [N, T, 3 * heads * width] -> [N, T, heads * width].
py::array attention_tokens(const py::array& x_any, int64_t heads, double exponent, const py::kwargs& kwargs) {
  Options o = options_of(kwargs);
  const View x(contiguous(x_any)), residual(o.residual);
  if (o.residual) o.epilogue.residual = *residual;
  AttentionProblem p = attention_problem(*x, heads, exponent, o.epilogue);
  py::array y = output(o.out, {p.batch, p.q_tokens, heads * p.width}, p.epilogue.out_type);
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
  m.attr("ALIGNMENT") = qk::kAlignment;
  m.attr("LAYOUT_VERSION") = qk::kLayoutVersion;
  m.attr("MAX_K") = qk::kMaxK;
  m.attr("MAX_EXTENT") = qk::kMaxExtent;
  m.attr("MAX_WINDOW") = qk::kMaxWindow;
  m.attr("MAX_THREADS") = qk::kMaxThreads;
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const qk::TypeRefusal& refusal) {
      PyErr_SetString(PyExc_TypeError, refusal.what());
    }
  });
  m.def("cpu_features", &qk::cpu_features, "Instruction sets and whether this machine runs them.");
  m.def("active_isa", [] { return qk::isa_name(qk::active_isa()); }, "The set in use: the best one, lowered by QKERNELS_MAX_ISA.");
  m.def("kernels", &qk::kernel_table, "The kernel table, one dict an instruction set.");
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
  m.def("conv2d_plan", static_cast<qk::ConvPlanFunction*>(&qk::conv2d_plan), "x"_a, "weight"_a, "weight_scale"_a, "bias"_a, "input_scale"_a,
        "input_zero_point"_a, "symmetric"_a, "kernel_size"_a, "stride"_a, "padding"_a, "dilation"_a, "groups"_a, "padding_mode"_a,
        "How conv2d takes these arguments: path, image, cuts of the batch, workspace; `text` to be printed.");
  m.def("conv2d", static_cast<qk::ConvFunction*>(&qk::conv2d_nhwc), "x"_a, "weight"_a, "weight_scale"_a, "bias"_a, "input_scale"_a, "input_zero_point"_a,
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
  m.def("max_pool2d", &qk::max_pool2d_nhwc, "x"_a, "kernel_size"_a, "stride"_a, "padding"_a, "dilation"_a, "ceil_mode"_a = false,
        "isa"_a = py::none(), "threads"_a = 1, "x [N, H, W, C] int8, the maximum over windows.");
  m.def("avg_pool2d", &qk::avg_pool2d_nhwc, "x"_a, "zero_point"_a, "kernel_size"_a, "stride"_a, "padding"_a, "ceil_mode"_a = false,
        "count_include_pad"_a = true, "isa"_a = py::none(), "threads"_a = 1, "x [N, H, W, C] int8, the mean over windows; padding is real 0.");
  m.def("mean_pool2d", &qk::mean_pool2d_nhwc, "x"_a, "threads"_a = 1, "x [N, H, W, C] float32 to [N, 1, 1, C], in one order of additions.");
  m.def("lookup", &qk::lookup_any, "x"_a, "table"_a, "isa"_a = py::none(), "threads"_a = 1, "table[x + 128], int8 to int8.");
}
