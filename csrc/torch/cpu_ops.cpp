// The operators on the CPU.
#include "../cpu/conv2d.h"
#include "../cpu/gemm.h"
#include "../cpu/move.h"
#include "../cpu/pack.h"
#include "../cpu/pool.h"
#include "../cpu/quantize.h"
#include "operators.h"
#include "tensors.h"

namespace qk::cpu_ops {

struct Cpu {
  static Tensor empty(const Tensor& x, const Ints& size, ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
    return empty_cpu(x, size, dtype, format);
  }
  static Tensor readable(const Tensor& x) { return qk::readable(x); }
  template <class... Sizes>
  static bool pack(const Tensor&, const int8_t* weight, Sizes... sizes) { return pack_weight(weight, sizes...); }
  template <class... Sizes>
  static void unpack(const Tensor&, const int8_t* packed, Sizes... sizes) { unpack_weight(packed, sizes...); }

  static void run(const Tensor&, const QuantizeProblem& p) { qk::quantize(p, active_isa(), torch_threads()); }
  static void run(const Tensor&, const DequantizeProblem& p) { qk::dequantize(p, active_isa(), torch_threads()); }
  static void run(const Tensor&, const Pool2dProblem& p) { qk::pool2d(p, active_isa(), torch_threads()); }
  static void run(const Tensor& x, const GemmProblem& p) {
    const Parallel threads = torch_threads();
    Scratch scratch(x, gemm_workspace(p, active_isa(), threads.threads));
    gemm(p, active_isa(), threads, scratch.data());
  }
  static void run_weight_only(const Tensor& x, const WeightOnlyProblem& p) {
    const Parallel threads = torch_threads();
    Scratch scratch(x, weight_only_workspace(p, threads.threads));
    weight_only(p, active_isa(), threads, scratch.data());
  }
  static void run(const Tensor& x, const Conv2dProblem& p) {
    const Parallel threads = torch_threads();
    Scratch scratch(x, conv2d_workspace(p, active_isa(), threads.threads));
    qk::conv2d(p, active_isa(), threads, scratch.data());
  }
};

// ---- what only the CPU has

static Tensor lookup(const Tensor& x_any, const Tensor& table) {
  const char* op = "lookup";
  check(x_any.scalar_type() == ScalarType::Char, op, "x is ", name(x_any.scalar_type()), "; it must be int8");
  check_beside(op, "table", table, x_any);
  check(table.scalar_type() == ScalarType::Char && table.is_contiguous() && table.numel() == 256, op, "table is ",
        name(table.scalar_type()), " ", shape(table), "; it must be contiguous int8 [256]");
  const MemoryFormat format = x_any.dim() == 4 ? format_like(x_any) : MemoryFormat::Contiguous;
  const Tensor x = format == MemoryFormat::ChannelsLast ? x_any : as_contiguous(x_any);
  Tensor y = empty_cpu(x, Ints(x.sizes().begin(), x.sizes().end()), ScalarType::Char, format);
  qk::lookup({x.numel(), static_cast<const int8_t*>(table.const_data_ptr()), 0, static_cast<const int8_t*>(x.const_data_ptr()),
              static_cast<int8_t*>(y.mutable_data_ptr())},
             active_isa(), torch_threads());
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
  Tensor y = empty_cpu(x, {p.batch, p.c, 1, 1}, ScalarType::Float);
  p.y = static_cast<float*>(y.mutable_data_ptr());
  mean(p, torch_threads());
  return y;
}

static std::string cpu_isa() { return isa_name(active_isa()); }

}  // namespace qk::cpu_ops

STABLE_TORCH_LIBRARY_IMPL(qkernels, CPU, m) {
  qk::register_operators<qk::cpu_ops::Cpu>(m);
  m.impl("lookup", TORCH_BOX(&qk::cpu_ops::lookup));
  m.impl("mean_pool2d", TORCH_BOX(&qk::cpu_ops::mean_pool2d));
}

STABLE_TORCH_LIBRARY_IMPL(qkernels, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&qk::cpu_ops::cpu_isa)); }
