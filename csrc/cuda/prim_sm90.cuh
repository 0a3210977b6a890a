// More of what kernels are written in, on Hopper: products of a warpgroup (four warps), whose columns the tensor cores read
// from shared memory themselves. PTX ISA, "Asynchronous warpgroup level matrix instructions".
#pragma once
#include "prim.cuh"

#ifdef QK_EMU
#include "emu/prim_sm90.h"
#define QK_WGMMA (QK_ARCH == 900)
#else
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define QK_WGMMA 1
#else
#define QK_WGMMA 0
#endif

namespace qk {
namespace {

// Makes this thread's writes to shared memory, copies that were waited for among them, visible to the tensor cores.
QK_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before the first product that reads registers which were written since the last.
QK_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
QK_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

#define QK_ACC8(c, i) \
  "+r"(c[i]), "+r"(c[i + 1]), "+r"(c[i + 2]), "+r"(c[i + 3]), "+r"(c[i + 4]), "+r"(c[i + 5]), "+r"(c[i + 6]), "+r"(c[i + 7])
#define QK_ACC64(c) \
  QK_ACC8(c, 0), QK_ACC8(c, 8), QK_ACC8(c, 16), QK_ACC8(c, 24), QK_ACC8(c, 32), QK_ACC8(c, 40), QK_ACC8(c, 48), QK_ACC8(c, 56)

// Until at most N groups are under way; the sums are not to be looked at before.
template <int N>
QK_DEVICE void wgmma_wait(int32_t (&c)[2][64]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
  QK_UNROLL for (int j = 0; j < 2; ++j) asm volatile("" : QK_ACC64(c[j])::"memory");
}

// c[64,128] += a[64,32] * b[32,128], int8 to int32. Warp w of the group has rows 16w to 16w + 15 of a and c, by lanes as in
// multiply(); b is 128 rows of K in shared memory, named by a descriptor.
QK_DEVICE void wgmma_m64n128k32(int32_t (&c)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, "
      "%25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, 1;"
      : QK_ACC64(c) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

}  // namespace
}  // namespace qk
#endif

namespace qk {
namespace {

// Rows of 128 bytes from a multiple of 1024 on, chunks swizzled in groups of eight rows; 32 bytes further in K are + 2.
QK_DEVICE uint64_t matrix_descriptor(const void* p) {
  constexpr uint64_t swizzle_128 = uint64_t(1) << 62, group_stride = uint64_t(1024 >> 4) << 32, unused = 1 << 16;
  return swizzle_128 | group_stride | unused | (shared_address(p) & 0x3ffff) >> 4;
}

}  // namespace
}  // namespace qk
