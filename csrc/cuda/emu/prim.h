// The names of prim.cuh in the emulator. Lane maps of ldmatrix and mma: PTX ISA, "Warp-level matrix instructions".
#pragma once
#include <cmath>
#include <cstring>

#include "../../cpu/vec/scalar.h"
#include "emu.h"

#ifndef QK_ARCH
#error "QK_ARCH says which architecture to emulate: 750, 800 or 900"
#endif
#define QK_DEVICE static inline __attribute__((unused))
#define QK_KERNEL(threads) void
#define QK_PARAMETER const
#define QK_UNROLL
#define QK_ROLL

namespace qk {
namespace {

QK_DEVICE int thread_index() { return emu::current->index; }
QK_DEVICE int thread_count() { return emu::threads; }
QK_DEVICE int64_t block_x() { return emu::block[0]; }
QK_DEVICE int64_t block_y() { return emu::block[1]; }
QK_DEVICE int64_t block_z() { return emu::block[2]; }
QK_DEVICE int64_t blocks_x() { return emu::blocks[0]; }

QK_DEVICE void touch(const void* p, int bytes, int alignment, bool write) {
  emu::touch_shared(p, bytes, alignment, write);
  emu::current->accesses.push_back({uint32_t(static_cast<const char*>(p) - emu::shared), bytes, write});
}

QK_DEVICE void not_made_for_this() { emu::fail("the kernel is not made for %d", QK_ARCH); }

QK_DEVICE char* shared_memory() { return emu::shared; }
QK_DEVICE uint32_t shared_address(const void* p) { return uint32_t(static_cast<const char*>(p) - emu::shared); }
template <class T>
QK_DEVICE T shared_load(const void* p) {
  touch(p, sizeof(T), alignof(T), false);
  emu::current->registers_fenced = false;
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
QK_DEVICE void shared_store(void* p, T v) {
  touch(p, sizeof(T), alignof(T), true);
  emu::current->unfenced.push_back(emu::current->accesses.back());
  std::memcpy(p, &v, sizeof v);
}

template <class T>
QK_DEVICE T global_load(const void* p) {
  emu::check_global(p, sizeof(T), alignof(T));
  emu::current->registers_fenced = false;
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
QK_DEVICE void global_store(void* p, T v) {
  emu::check_global(p, sizeof(T), alignof(T));
  std::memcpy(p, &v, sizeof v);
}
template <class T>
QK_DEVICE T global_load_once(const void* p) { return global_load<T>(p); }
QK_DEVICE void atomic_max(uint32_t* p, uint32_t v) {
  const uint32_t old = global_load<uint32_t>(p);
  global_store(p, old > v ? old : v);
}

QK_DEVICE void block_sync() { emu::meet_block(); }
QK_DEVICE void warp_sync() { emu::meet(emu::join_warp, nullptr, nullptr); }

QK_DEVICE float fma_rn(float a, float b, float c) { return std::fma(a, b, c); }
QK_DEVICE int32_t to_int_rn(float v) { return int32_t(std::rint(v)); }
QK_DEVICE float max_f32(float a, float b) { return std::isnan(a) || a < b || (a == b && std::signbit(a)) ? b : a; }
QK_DEVICE float min_f32(float a, float b) { return std::isnan(a) || a > b || (a == b && !std::signbit(a)) ? b : a; }
QK_DEVICE float from_f16(uint16_t h) { return f16_to_f32(h); }
QK_DEVICE uint16_t to_f16(float v) { return f32_to_f16(v); }

QK_DEVICE uint32_t to_f16x2(float a, float b) { return to_f16(a) | uint32_t(to_f16(b)) << 16; }
QK_DEVICE uint32_t to_bf16x2(float a, float b) {
  const auto upper = [](float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return upper(a) | upper(b) << 16;
}
QK_DEVICE uint32_t byte_in(uint32_t other, uint32_t word, int i) { return (other & ~255u) | (word >> (8 * i) & 255); }
QK_DEVICE uint32_t bytes_of(int32_t a, int32_t b, int32_t c, int32_t d) {
  return (uint32_t(a) & 255) | (uint32_t(b) & 255) << 8 | (uint32_t(c) & 255) << 16 | uint32_t(d) << 24;
}

template <int Bytes>
QK_DEVICE void cp_async(void* shared, const void* global, bool exists) {
  emu::touch_shared(shared, Bytes, Bytes, true);
  if (exists) emu::check_global(global, Bytes, Bytes);
  emu::current->copies.push_back({static_cast<char*>(shared), exists ? static_cast<const char*>(global) : nullptr, Bytes, emu::current->group});
}
QK_DEVICE void cp_async_commit() { ++emu::current->group; }
template <int N>
QK_DEVICE void cp_async_wait() { emu::land_copies(N); }

struct Shuffle {
  uint32_t value;
  int mask;
};
QK_DEVICE void run_shuffle(emu::Thread* lanes) {
  for (int l = 0; l < emu::kWarp; ++l) {
    const int from = l ^ static_cast<const Shuffle*>(lanes[l].in)->mask;
    *static_cast<uint32_t*>(lanes[l].out) = static_cast<const Shuffle*>(lanes[from].in)->value;
  }
}
QK_DEVICE uint32_t shuffle_xor(uint32_t v, int mask) {
  const Shuffle in{v, mask};
  uint32_t out;
  emu::meet(run_shuffle, &in, &out);
  return out;
}

QK_DEVICE void run_ldmatrix(emu::Thread* lanes) {
  for (int m = 0; m < 4; ++m) {
    uint32_t banks = 0;
    for (int r = 0; r < 8; ++r) {
      const char* row = static_cast<const char*>(lanes[m * 8 + r].in);
      const uint32_t bank = 1u << ((row - emu::shared) / 16 % 8);
      emu::counters.conflicts += (banks & bank) != 0;
      banks |= bank;
      for (int t = 0; t < 4; ++t) std::memcpy(static_cast<uint32_t*>(lanes[r * 4 + t].out) + m, row + t * 4, 4);
    }
  }
}
QK_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  emu::touch_shared(row, 16, 16, false);
  emu::meet(run_ldmatrix, row, r);
}

QK_DEVICE void unpack(int8_t* to, uint32_t word) { std::memcpy(to, &word, 4); }

template <int M, int K>
struct Fragments {
  uint32_t a[M * K / 128], b[K / 16];
};

// c[M,8] += a[M,K] * b[K,8]; halves of 8 rows and of 16 K, in registers a[k half][row half], b[k half], c[row half][2].
template <int M, int K>
QK_DEVICE void run_mma(emu::Thread* lanes) {
  int8_t a[M][K], b[8][K];
  for (int l = 0; l < emu::kWarp; ++l) {
    const auto& in = *static_cast<const Fragments<M, K>*>(lanes[l].in);
    const int g = l / 4, t = l % 4;
    for (int k = 0; k < K / 16; ++k) {
      for (int r = 0; r < M / 8; ++r) unpack(&a[r * 8 + g][k * 16 + t * 4], in.a[k * (M / 8) + r]);
      unpack(&b[g][k * 16 + t * 4], in.b[k]);
    }
  }
  for (int l = 0; l < emu::kWarp; ++l) {
    int32_t* c = static_cast<int32_t*>(lanes[l].out);
    for (int i = 0; i < M / 4; ++i) {
      const int row = l / 4 + 8 * (i / 2), column = l % 4 * 2 + i % 2;
      int32_t sum = 0;
      for (int k = 0; k < K; ++k) sum += a[row][k] * b[column][k];
      c[i] += sum;
    }
  }
}
QK_DEVICE void mma_16832(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Fragments<16, 32> in{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  emu::meet(run_mma<16, 32>, &in, c);
}
QK_DEVICE void mma_8816(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
  const Fragments<8, 16> in{{a}, {b}};
  int32_t c[2] = {c0, c1};
  emu::meet(run_mma<8, 16>, &in, c);
  c0 = c[0];
  c1 = c[1];
}

}  // namespace
}  // namespace qk
