// Which tile a GEMM takes: plain arithmetic, so that a table can test it for every architecture.
#pragma once
#include "device.h"
#include "index.h"

namespace qk::cuda {

enum class TileName : uint8_t { turing, small, medium, tall, large, hopper };
constexpr const char* kTileNames[] = {"turing", "small", "medium", "tall", "large", "hopper"};

// Blocks that a tile would make.
constexpr int64_t blocks(int64_t m, int64_t n, int64_t bm, int64_t bn) { return ceil_div(m, bm) * ceil_div(n, bn); }

// `n` channels in each of `groups`. The largest tile whose blocks still fill the device: it reads its operands least often.
constexpr TileName plan_gemm(const Device& device, int64_t m, int64_t n, int64_t groups) {
  if (device.arch < 80) return TileName::turing;
  if (device.tile >= 0 && (TileName(device.tile) != TileName::hopper || device.arch == 90)) return TileName(device.tile);
  if (m > 64 && n <= 64 && groups * blocks(m, n, 128, 64) >= device.processors) return TileName::tall;
  if (m > 64 && n > 64 && groups * blocks(m, n, 128, 128) >= device.processors) return TileName::large;
  if (m > 32 && n > 64 && groups * blocks(m, n, 64, 128) >= device.processors / 2) return TileName::medium;
  return TileName::small;
}

}  // namespace qk::cuda
