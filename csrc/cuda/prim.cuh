// What kernels are written in: coordinates, memory by its space, asynchronous copies, barriers, what a warp does
// together. Here for a GPU; with QK_EMU, emu/prim.h gives the same names a meaning in plain C++ that looks for
// mistakes. A kernel uses nothing else, so that one source runs on both.
#pragma once
#include "../core/epilogue.h"

#ifdef QK_EMU
#include "emu/prim.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define QK_DEVICE static __device__ __forceinline__
#define QK_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)  // 1: registers are never traded for spills
#define QK_PARAMETER const __grid_constant__  // read where it lies, never copied to the stack
#define QK_UNROLL _Pragma("unroll")
#define QK_ROLL _Pragma("unroll 1")  // where unrolling would cost registers
#ifdef __CUDA_ARCH__
#define QK_ARCH __CUDA_ARCH__
#else
#define QK_ARCH 800  // the host's pass compiles no kernel
#endif

namespace qk {
namespace {

QK_DEVICE int thread_index() { return int(threadIdx.x); }
QK_DEVICE int thread_count() { return int(blockDim.x); }
QK_DEVICE int64_t block_x() { return blockIdx.x; }
QK_DEVICE int64_t block_y() { return blockIdx.y; }
QK_DEVICE int64_t block_z() { return blockIdx.z; }
QK_DEVICE int64_t blocks_x() { return gridDim.x; }

QK_DEVICE void not_made_for_this() { asm volatile("trap;"); }

QK_DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char memory[];  // a period of the 128-byte swizzle
  return memory;
}
template <class T>
QK_DEVICE T shared_load(const void* p) { return *static_cast<const T*>(p); }
template <class T>
QK_DEVICE void shared_store(void* p, T v) { *static_cast<T*>(p) = v; }

template <class T>
QK_DEVICE T global_load(const void* p) { return *static_cast<const T*>(p); }
template <class T>
QK_DEVICE void global_store(void* p, T v) { *static_cast<T*>(p) = v; }
// 16 bytes that nobody needs again: past the L1 cache.
template <class T>
QK_DEVICE T global_load_once(const void* p) {
  static_assert(sizeof(T) == 16);
  T v;
  uint32_t w[4];
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "l"(p));
  memcpy(&v, w, 16);
  return v;
}
QK_DEVICE void atomic_max(uint32_t* p, uint32_t v) { atomicMax(p, v); }

QK_DEVICE void block_sync() { __syncthreads(); }
QK_DEVICE void warp_sync() { __syncwarp(); }
QK_DEVICE uint32_t shuffle_xor(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

QK_DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
QK_DEVICE int32_t to_int_rn(float v) { return __float2int_rn(v); }
QK_DEVICE float max_f32(float a, float b) { return fmaxf(a, b); }  // b where a is NaN; -0 is below 0
QK_DEVICE float min_f32(float a, float b) { return fminf(a, b); }
QK_DEVICE float from_f16(uint16_t h) { return __half2float(__ushort_as_half(h)); }
QK_DEVICE uint16_t to_f16(float v) { return __half_as_ushort(__float2half_rn(v)); }

// Two values in a word, the first in its lower half.
QK_DEVICE uint32_t to_f16x2(float a, float b) {
  const __half2 h = __floats2half2_rn(a, b);
  uint32_t word;
  memcpy(&word, &h, 4);
  return word;
}
QK_DEVICE uint32_t to_bf16x2(float a, float b) {  // of numbers, not NaN
#if QK_ARCH >= 800
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
  return word;
#else
  const auto upper = [](float v) { return (__float_as_uint(v) + 0x7fff + (__float_as_uint(v) >> 16 & 1)) >> 16; };
  return upper(a) | upper(b) << 16;
#endif
}
// Byte i of a word in the place of another's lowest; the lowest bytes of four words in one.
QK_DEVICE uint32_t byte_in(uint32_t other, uint32_t word, int i) { return __byte_perm(word, other, 0x7650 | i); }
QK_DEVICE uint32_t bytes_of(int32_t a, int32_t b, int32_t c, int32_t d) {
  return __byte_perm(__byte_perm(uint32_t(a), uint32_t(b), 0x0040), __byte_perm(uint32_t(c), uint32_t(d), 0x0040), 0x5410);
}

QK_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Bytes from global memory to shared, or zeros where `exists` is false; there after the wait for its group.
template <int Bytes>
QK_DEVICE void cp_async(void* shared, const void* global, bool exists) {
  const int count = exists ? Bytes : 0;
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(count) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(Bytes), "r"(count) : "memory");
}
QK_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
QK_DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four 8x8 matrices of 16-bit words: lane l names row l % 8 of matrix l / 8, and gets words 2 * (l % 4), + 1 of each row l / 4.
QK_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// c[16,8] += a[16,32] * b[32,8], int8 to int32.
QK_DEVICE void mma_16832(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c[8,8] += a[8,16] * b[16,8]
QK_DEVICE void mma_8816(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(c0), "+r"(c1) : "r"(a), "r"(b));
}

}  // namespace
}  // namespace qk
#endif  // QK_EMU

namespace qk {

// The threads of a block of a kernel that is made for other architectures: fewer than it is launched with, so that launch() can tell.
constexpr int kNoThreads = 32;

namespace {

QK_DEVICE int lane_index() { return thread_index() % 32; }
QK_DEVICE int warp_index() { return thread_index() / 32; }

struct alignas(16) Words {
  uint32_t v[4];
};

// Before Ampere, copies pass through registers and are there at once.
template <int Bytes>
QK_DEVICE void copy_async(void* shared, const void* global, bool exists) {
#if QK_ARCH >= 800
  cp_async<Bytes>(shared, global, exists);
#else
  if constexpr (Bytes == 16) shared_store(shared, exists ? global_load<Words>(global) : Words{});
  else shared_store(shared, exists ? global_load<uint32_t>(global) : 0u);
#endif
}
QK_DEVICE void copy_commit() {
#if QK_ARCH >= 800
  cp_async_commit();
#endif
}
// Until at most the N latest groups are under way.
template <int N>
QK_DEVICE void copy_wait() {
#if QK_ARCH >= 800
  cp_async_wait<N>();
#endif
}

// c[16,8] += a[16,32] * b[32,8]. Lane l: g = l / 4, t = l % 4, bytes 4t to 4t + 3 of
//   a: rows g, g + 8, then the same 16 bytes further    b: column g, then 16 further    c: (g, 2t), + 1, (g + 8, 2t), + 1
QK_DEVICE void multiply(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if QK_ARCH >= 800
  mma_16832(c, a, b0, b1);
#else
  mma_8816(c[0], c[1], a[0], b0);
  mma_8816(c[2], c[3], a[1], b0);
  mma_8816(c[0], c[1], a[2], b1);
  mma_8816(c[2], c[3], a[3], b1);
#endif
}

}  // namespace
}  // namespace qk
