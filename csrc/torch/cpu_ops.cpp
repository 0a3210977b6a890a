// The operators on the CPU.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../cpu/conv2d.h"
#include "../cpu/gemm.h"
#include "../cpu/pack.h"
#include "../cpu/pool.h"
#include "../cpu/quantize.h"
#include "operators.h"

namespace qk::cpu_ops {

static Parallel torch_threads() {
  return {int(torch::stable::get_num_threads()), [](int64_t count, void (*body)(void*, int64_t), void* context) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) body(context, i);
            });
          }};
}

constexpr int64_t kLargeElements = 1 << 20;

// An output of many megabytes is mapped anew at every call, and its first touch costs more than its computation: a page
// fault every 4 KB. Asked for, Linux maps 2 MB at a time (as NumPy does for its arrays).
static void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Scratch for one call: on the stack where it is small, else from torch's allocator.
class Scratch {
 public:
  Scratch(const Tensor& x, int64_t bytes) {
    if (bytes <= int64_t(sizeof small_)) return;
    large_ = empty_beside(x, {bytes}, ScalarType::Byte);
    if (bytes >= kLargeElements) prefer_huge_pages(large_->mutable_data_ptr(), bytes);
  }
  void* data() { return large_ ? large_->mutable_data_ptr() : small_; }

 private:
  alignas(64) char small_[8192];
  std::optional<Tensor> large_;
};

struct Cpu {
  static Tensor empty(const Tensor& x, const Ints& size, ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
    Tensor y = empty_beside(x, size, dtype, format);
    const int64_t values = y.numel();
    if (values >= kLargeElements) prefer_huge_pages(y.mutable_data_ptr(), values * int64_t(y.element_size()));
    return y;
  }
  // x as the driver reads it fast: a pixel's channels together, or rows of planes that follow each other; else a copy.
  static Tensor readable(const Tensor& x) {
    const bool pixels = x.stride(1) == 1, planes = x.stride(3) == 1 && x.stride(2) == x.size(3);
    return pixels || planes ? x : torch::stable::contiguous(x);
  }
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

static std::string cpu_isa() { return isa_name(active_isa()); }

}  // namespace qk::cpu_ops

STABLE_TORCH_LIBRARY_IMPL(qkernels, CPU, m) { qk::register_operators<qk::cpu_ops::Cpu>(m); }

STABLE_TORCH_LIBRARY_IMPL(qkernels, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&qk::cpu_ops::cpu_isa)); }
