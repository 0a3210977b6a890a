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
  static void run(const Tensor&, const MeanProblem& p) { mean(p, torch_threads()); }
  static void run(const Tensor&, const LookupProblem& p) { qk::lookup(p, active_isa(), torch_threads()); }
  static void run(const Tensor& x, const GemmProblem& p) {
    const Parallel threads = torch_threads();
    const GemmPlan plan = plan_linear(p, active_isa(), threads.threads);
    Scratch scratch(x, plan.bytes);
    gemm(p, plan, threads, scratch.data());
  }
  static void run_weight_only(const Tensor& x, const WeightOnlyProblem& p) {
    const Parallel threads = torch_threads();
    Scratch scratch(x, weight_only_workspace(p, threads.threads));
    weight_only(p, active_isa(), threads, scratch.data());
  }
  static void run(const Tensor& x, const Conv2dProblem& p) {
    const Parallel threads = torch_threads();
    const ConvPlan plan = plan_conv2d(p, active_isa(), threads.threads);
    Scratch scratch(x, plan.bytes);
    qk::conv2d(p, plan, threads, scratch.data());
  }
};

static std::string cpu_isa() { return isa_name(active_isa()); }

static std::string cpu_isas() { return known_isas(); }

static int64_t packed_bytes(Ints size, int64_t groups) { return weight_size(size, groups).layout().bytes(); }

}  // namespace qk::cpu_ops

STABLE_TORCH_LIBRARY_IMPL(qkernels, CPU, m) { qk::register_operators<qk::cpu_ops::Cpu>(m); }

STABLE_TORCH_LIBRARY_IMPL(qkernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&qk::cpu_ops::cpu_isa));
  m.impl("cpu_isas", TORCH_BOX(&qk::cpu_ops::cpu_isas));
  m.impl("packed_bytes", TORCH_BOX((&qk::Operator<"packed_bytes", &qk::cpu_ops::packed_bytes>::call)));
}
