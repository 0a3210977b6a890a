// The operators on CUDA devices: on torch's current stream, in memory of torch's allocator, without waiting for the device
// (but pack_weight, which reads whether a value was out of range).
#ifdef QK_CUDA  // else torch itself says that there is no kernel for the device

#include <dlfcn.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../cuda/conv2d.h"
#include "../cuda/gemm.h"
#include "../cuda/lookup.h"
#include "../cuda/pack.h"
#include "../cuda/pool.h"
#include "../cuda/quantize.h"
#include "operators.h"

namespace qk::cuda_ops {

using cuda::Stream;

// libtorch_cuda has it; a torch without CUDA, where this library loads too, has not.
static Stream current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return reinterpret_cast<Function>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  check(function, "x is on cuda:", device, ", but this torch has no CUDA (libtorch_cuda.so is not loaded)");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return stream;
}

// The device and stream of x for the time of one call.
class Call {
 public:
  explicit Call(const Tensor& x) : x_(x), guard_(x.get_device_index()), stream_(current_stream(x.get_device_index())) {
    succeed(cuda::use_device(x.get_device_index()));
  }
  Stream stream() const { return stream_; }
  // Of the current stream: the allocator gives it to nobody else before what is queued now is done.
  void* scratch(int64_t bytes) {
    if (bytes) scratch_ = empty_beside(x_, {bytes}, ScalarType::Byte);
    return scratch_ ? scratch_->mutable_data_ptr() : nullptr;
  }
  void succeed(int error) const {
    check(error == 0, "CUDA error ", error, " on cuda:", x_.get_device_index(), ": ", cuda::error_text(error),
          error == kNoKernelImage ? "; this build holds no kernels for its compute capability, see QKERNELS_CUDA_ARCHS in setup.py" : "");
  }

 private:
  static constexpr int kNoKernelImage = 209;  // cudaErrorNoKernelImageForDevice
  const Tensor& x_;
  torch::stable::accelerator::DeviceGuard guard_;
  Stream stream_;
  std::optional<Tensor> scratch_;
};

// Kernels read it 16 bytes at a time, as a view into one file of many weights need not lie.
static void check_lies(const int8_t* weight) {
  const int64_t off = int64_t(reinterpret_cast<uintptr_t>(weight) % 16);
  check(off == 0, "weight begins ", off, " bytes behind a multiple of 16, where CUDA kernels cannot read it; weight.clone() can be");
}

constexpr int64_t kMostRows = 0x7fffffff;  // of a GEMM, and elements of what is indexed with 32 bits

struct Cuda {
  static Tensor empty(const Tensor& x, const Ints& size, ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
    return empty_beside(x, size, dtype, format);
  }
  static Tensor readable(const Tensor& x) {
    return x.is_contiguous() || lies_as_pixels(view(x)) ? x : torch::stable::contiguous(x);
  }

  static bool pack(const Tensor& x, const int8_t* weight, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* packed) {
    Call call(x);
    auto* bad = static_cast<uint32_t*>(call.scratch(4));
    call.succeed(cuda::pack_weight(weight, oc, c, kh, kw, groups, packed, bad, call.stream()));
    uint32_t found = 0;
    call.succeed(cuda::read_back(&found, bad, sizeof found, call.stream()));
    return !found;
  }
  template <class... Sizes>
  static void unpack(const Tensor& x, const int8_t* packed, Sizes... sizes) {
    Call call(x);
    call.succeed(cuda::unpack_weight(packed, sizes..., call.stream()));
  }

  static void run(const Tensor& x, const QuantizeProblem& p) {
    Call call(x);
    cuda::QuantizeRows q;
    q.rows = p.rows, q.cols = q.x_stride = q.q_stride = p.cols;
    q.x = p.x, q.x_type = p.x_type;
    q.rows_per_scale = p.rows_per_scale;
    q.scales = {p.range, p.scale, p.zero, nullptr};
    if (p.range != Range::given && p.rows_per_scale > 1) q.scales.extremes = static_cast<uint32_t*>(call.scratch(8));
    q.q = p.q;
    call.succeed(cuda::quantize_rows(q, call.stream()));
  }
  static void run(const Tensor& x, const DequantizeProblem& p) {
    Call call(x);
    call.succeed(cuda::dequantize_rows({p.rows, p.cols, p.rows_per_scale, p.q, p.scale, p.zero, p.y_type, p.y}, call.stream()));
  }
  static void run(const Tensor& x, const GemmProblem& p) {
    check_lies(p.weight);
    Call call(x);
    check(p.m <= kMostRows, "x has ", p.m, " rows; ", kMostRows, " are supported on CUDA");
    call.succeed(cuda::gemm(p, call.scratch(cuda::gemm_workspace(p)), call.stream()));
  }
  static void run_weight_only(const Tensor& x, const WeightOnlyProblem& p) {
    check_lies(p.weight);
    Call call(x);
    call.succeed(cuda::weight_only(p, call.stream()));
  }
  static void run(const Tensor& x, const Conv2dProblem& p) {
    check_lies(p.weight);
    Call call(x);
    const int64_t outputs = p.batch * p.oh() * p.ow() * p.oc;
    check(outputs <= kMostRows, "the output has ", outputs, " values; ", kMostRows, " are supported on CUDA");
    call.succeed(cuda::conv2d(p, call.scratch(cuda::conv2d_workspace(p)), call.stream()));
  }
  static void run(const Tensor& x, const Pool2dProblem& p) {
    Call call(x);
    const int64_t outputs = p.batch * p.oh * p.ow * p.c;
    check(outputs <= kMostRows, "the output has ", outputs, " values; ", kMostRows, " are supported on CUDA");
    call.succeed(cuda::pool2d(p, call.stream()));
  }
  static void run(const Tensor& x, const MeanProblem& p) {
    Call call(x);
    check(p.batch * p.c <= kMostRows, "x has ", p.batch * p.c, " planes; ", kMostRows, " are supported on CUDA");
    call.succeed(cuda::mean(p, call.stream()));
  }
  static void run(const Tensor& x, const LookupProblem& p) {
    Call call(x);
    call.succeed(cuda::lookup(p, call.stream()));
  }
};

}  // namespace qk::cuda_ops

STABLE_TORCH_LIBRARY_IMPL(qkernels, CUDA, m) { qk::register_operators<qk::cuda_ops::Cuda>(m); }

#endif
