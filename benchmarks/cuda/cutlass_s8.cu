// The peer: vLLM's int8 GEMM for Hopper, from CUTLASS's headers (csrc/quantization/w8a8/cutlass/c3x of vLLM 0.10). One tile
// an object; cutlass_peer.py names it and builds it.
//
// d[m,n] bf16 = sum_k a[m,k] * b[n,k] * scale_a[m] * scale_b[n]; a and b int8, K last; k a multiple of 16, n of 8.
#include <cute/tensor.hpp>
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

using namespace cute;

using TileShape = Shape<Int<TILE_M>, Int<TILE_N>, Int<TILE_K>>;
using ClusterShape = Shape<Int<CLUSTER_M>, Int<CLUSTER_N>, _1>;
using Schedule = std::conditional_t<PINGPONG, cutlass::gemm::KernelTmaWarpSpecializedPingpong, cutlass::gemm::KernelTmaWarpSpecialized>;

namespace fusion = cutlass::epilogue::fusion;
constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
using ScaleA = fusion::Sm90ColBroadcast<0, TileShape, float, float, Stride<_1, _0, _0>>;
using ScaleB = fusion::Sm90RowBroadcast<0, TileShape, float, float, Stride<_0, _1, _0>>;
using ByColumn = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::multiplies, float, float, kRound>, ScaleB, fusion::Sm90AccFetch>;
using ByRow = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::multiplies, cutlass::bfloat16_t, float, kRound>, ScaleA, ByColumn>;

using StrideC = Stride<int64_t, _1, int64_t>;
using Epilogue = cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, ClusterShape, cutlass::epilogue::collective::EpilogueTileAuto, int32_t, float, void,
    StrideC, 8, cutlass::bfloat16_t, StrideC, 8, cutlass::epilogue::TmaWarpSpecialized, ByRow>::CollectiveOp;
using Mainloop = cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, int8_t, cutlass::layout::RowMajor, 16, int8_t, cutlass::layout::ColumnMajor, 16, int32_t, TileShape,
    ClusterShape, cutlass::gemm::collective::StageCountAutoCarveout<int(sizeof(Epilogue::SharedStorage))>, Schedule>::CollectiveOp;
using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue, cutlass::gemm::PersistentScheduler>;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

// 0, or a cutlass::Status. Nothing is allocated.
extern "C" __attribute__((visibility("default"))) int NAME(const int8_t* a, const int8_t* b, const float* scale_a, const float* scale_b,
                                                           void* d, int m, int n, int k, cudaStream_t stream) {
  const auto by_k = make_stride(int64_t(k), _1{}, int64_t(0));
  const auto by_n = make_stride(int64_t(n), _1{}, int64_t(0));
  typename Gemm::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGemm, {m, n, k, 1}, {a, by_k, b, by_k},
                                     {{}, nullptr, by_n, static_cast<cutlass::bfloat16_t*>(d), by_n}};
  arguments.epilogue.thread = {{scale_a, 0.0f, {}}, {{scale_b, 0.0f, {}}, {}, {}}, {}};
  if (const cutlass::Status status = Gemm::can_implement(arguments); status != cutlass::Status::kSuccess) return int(status);
  if (Gemm::get_workspace_size(arguments) > 0) return int(cutlass::Status::kErrorWorkspaceNull);
  Gemm gemm;
  if (const cutlass::Status status = gemm.initialize(arguments, nullptr, stream); status != cutlass::Status::kSuccess) return int(status);
  return int(gemm.run(stream));
}
