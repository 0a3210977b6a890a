// AMX tiles: the instructions, or the same meaning in software when QK_AMX_EMULATED is defined.
#pragma once
#include <cstdint>
#include <cstring>

namespace qk {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

#if defined(QK_AMX_EMULATED)

struct Tiles {
  alignas(64) int8_t bytes[8][16][64];

  template <int T>
  void zero() { std::memset(bytes[T], 0, 1024); }
  template <int T>
  void load(const void* p, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(bytes[T][r], static_cast<const char*>(p) + r * stride, 64);
  }
  template <int T>
  void load_once(const void* p, int64_t stride) { load<T>(p, stride); }
  template <int T>
  void store(void* p, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(p) + r * stride, bytes[T][r], 64);
  }
  template <int C, int A, int B>
  void dot() {  // C[16][16] int32 += A[16][64], unsigned, * B[16][16][4], signed
    for (int r = 0; r < 16; ++r) {
      int32_t row[16];
      std::memcpy(row, bytes[C][r], 64);
      for (int k = 0; k < 16; ++k)
        for (int n = 0; n < 16; ++n)
          for (int j = 0; j < 4; ++j) row[n] += int32_t(uint8_t(bytes[A][r][k * 4 + j])) * bytes[B][k][n * 4 + j];
      std::memcpy(bytes[C][r], row, 64);
    }
  }
};

#else

// Inline assembly, since GCC 12's intrinsics take literal tile numbers only and do not say that they touch memory.
struct Tiles {
  Tiles() {
    const TileConfig config;
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~Tiles() { asm volatile("tilerelease"); }  // the thread's next user (torch's own library) loads its own

  template <int T>
  inline __attribute__((always_inline)) void zero() { asm volatile("tilezero %%tmm%c0" : : "n"(T)); }
  template <int T>
  inline __attribute__((always_inline)) void load(const void* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "n"(T) : "memory");
  }
  // Past L1, where it would push out what is read again.
  template <int T>
  inline __attribute__((always_inline)) void load_once(const void* p, int64_t stride) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "n"(T) : "memory");
  }
  template <int T>
  inline __attribute__((always_inline)) void store(void* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "n"(T) : "memory");
  }
  template <int C, int A, int B>
  inline __attribute__((always_inline)) void dot() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "n"(C), "n"(A), "n"(B));
  }
};

#endif

}  // namespace
}  // namespace qk
