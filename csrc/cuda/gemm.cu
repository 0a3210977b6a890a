#include "gemm.h"

#include "quantize.h"
#include "skinny.cuh"
#include "tiles.cuh"
#include "../core/workspace.h"

namespace qk::cuda {
namespace {

// int8 rows as the kernels read them: 16 bytes at a time.
bool reads_in_place(const GemmProblem& p) {
  return p.x_type == DType::s8 && p.k % 16 == 0 && p.x_stride % 16 == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
}

// Few rows have a kernel of their own.
Plan plan_of(const GemmProblem& p, const Device& device) { return p.m <= 16 ? Plan{} : plan_gemm(device, p.m, p.n, p.k, 1); }

struct Memory {
  int8_t* q = nullptr;       // [m][round_up(k, 16)]
  float* scale = nullptr;    // [m], of dynamic ranges
  int32_t* zero = nullptr;
  int32_t* sums = nullptr;   // of splits
  int64_t bytes = 0;

  Memory(const GemmProblem& p, const Plan& plan, void* base) {
    Workspace w(base);
    if (!reads_in_place(p)) q = w.take<int8_t>(p.m * round_up(p.k, 16));
    if (p.range != Range::given) {
      scale = w.take<float>(p.m);
      zero = w.take<int32_t>(p.m);
    }
    sums = w.take<int32_t>(split_sums({1, p.n, p.k}, p.m, plan.splits));
    bytes = w.used();
  }
};

}  // namespace

int64_t gemm_workspace(const GemmProblem& p) {
  Device device;
  current_device(&device);  // an error comes back from gemm
  return Memory(p, plan_of(p, device), nullptr).bytes;
}

int gemm(const GemmProblem& p, void* workspace, Stream stream) {
  if (p.m == 0) return 0;
  Device device;
  if (const int error = current_device(&device)) return error;
  const Plan plan = plan_of(p, device);
  const Memory memory(p, plan, workspace);
  GemmArgs g = args_of(p);
  g.splits = plan.splits, g.sums = memory.sums;
  Rows rows{static_cast<const int8_t*>(p.x), p.m, p.x_stride, int(p.k)};
  if (!reads_in_place(p)) {
    QuantizeRows q;
    q.rows = p.m, q.cols = p.k;
    q.x = p.x, q.x_type = p.x_type, q.x_stride = p.x_stride;
    q.q = memory.q, q.q_stride = rows.stride = round_up(p.k, 16);
    if (p.range != Range::given) {
      g.epilogue.rows_per_scale = 1;
      g.epilogue.x_scale = memory.scale;
      g.epilogue.x_zero = memory.zero;
    }
    q.rows_per_scale = g.epilogue.rows_per_scale;
    q.scales = {p.range, const_cast<float*>(g.epilogue.x_scale), const_cast<int32_t*>(g.epilogue.x_zero), nullptr};
    if (const int error = quantize_rows(q, stream)) return error;
    rows.x = memory.q;
  }
  complete(g);
  if (p.m <= 8) return launch<skinny_kernel<1>>({ceil_div(p.n, kSkinnyChannels)}, kSkinnyThreads, skinny_bytes<1>(), stream, g, rows);
  if (p.m <= 16) return launch<skinny_kernel<2>>({ceil_div(p.n, kSkinnyChannels)}, kSkinnyThreads, skinny_bytes<2>(), stream, g, rows);
  return launch_gemm(plan, g, rows, stream);
}

}  // namespace qk::cuda
