// The names of prim_sm90.cuh in the emulator. PTX ISA, "Asynchronous warpgroup level matrix instructions".
#pragma once
#include "prim.h"

namespace qk {
namespace {

QK_DEVICE void fence_async_proxy() { emu::fence_async(); }
QK_DEVICE void wgmma_fence() { emu::current->registers_fenced = true; }
QK_DEVICE void wgmma_commit() { ++emu::current->product_group; }

QK_DEVICE void wgmma_m64n128k32(int32_t (&c)[64], const uint32_t (&a)[4], uint64_t b) {
  if (!emu::current->registers_fenced) emu::fail("a product reads registers that were not fenced since they were touched");
  emu::current->products.push_back({c, a, b, emu::current->product_group});
}

// 16 bytes of row r at byte k, through the swizzle, which works on addresses.
QK_DEVICE const char* matrix_chunk(uint64_t descriptor, int r, int k) {
  if (descriptor >> 62 != 1) emu::fail("a descriptor without the 128-byte swizzle");
  const uint32_t start = uint32_t(descriptor & 0x3fff) << 4, group = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t address = start + uint32_t(r / 8) * group + uint32_t(r % 8) * 128 + uint32_t(k);
  const uint32_t moved = address ^ (address >> 7 & 7) << 4;
  emu::touch_async(moved, 16);
  return emu::shared + moved;
}

QK_DEVICE void run_product(emu::Thread* lanes, size_t i) {
  constexpr int kColumns = 128, kDepth = 32;
  static int8_t a[64][kDepth], b[kColumns][kDepth];
  for (int l = 0; l < emu::kWarpgroup; ++l) {
    if (lanes[l].products[i].b != lanes[0].products[i].b) emu::fail("lanes 0 and %d name different operands", l);
    const int row = l / 32 * 16 + l % 32 / 4, t = l % 4;
    for (int h = 0; h < 4; ++h) unpack(&a[row + h % 2 * 8][h / 2 * 16 + t * 4], lanes[l].products[i].a[h]);
  }
  for (int r = 0; r < kColumns; ++r)
    for (int k = 0; k < kDepth; k += 16) std::memcpy(&b[r][k], matrix_chunk(lanes[0].products[i].b, r, k), 16);
  for (int l = 0; l < emu::kWarpgroup; ++l)
    for (int v = 0; v < 64; ++v) {
      const int row = l / 32 * 16 + l % 32 / 4 + v % 4 / 2 * 8, column = v / 4 * 8 + l % 4 * 2 + v % 2;
      int32_t sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[column][k];
      lanes[l].products[i].c[v] += sum;
    }
}

template <int Keep>
QK_DEVICE void run_products(emu::Thread* lanes) {
  const auto due = [&](size_t i) { return i < lanes[0].products.size() && lanes[0].products[i].group < lanes[0].product_group - Keep; };
  size_t count = 0;
  for (emu::current = lanes; due(count); ++count) run_product(lanes, count);
  for (int l = 0; l < emu::kWarpgroup; ++l) lanes[l].products.erase(lanes[l].products.begin(), lanes[l].products.begin() + long(count));
}

template <int Keep>
QK_DEVICE void wgmma_wait(int32_t (&)[2][64]) {
  emu::meet(run_products<Keep>, nullptr, nullptr, emu::kWarpgroup);
  emu::current->registers_fenced = false;
}

}  // namespace
}  // namespace qk
