// Which tile a GEMM takes: plain arithmetic, so that a table can test it for every architecture.
#pragma once
#include "device.h"
#include "index.h"

namespace qk::cuda {

enum class TileName : uint8_t { turing, small, medium, tall, large, hopper };
constexpr const char* kTileNames[] = {"turing", "small", "medium", "tall", "large", "hopper"};

struct TileShape {
  int64_t rows, channels;
};
constexpr TileShape kTileShapes[] = {{64, 64}, {32, 64}, {64, 128}, {128, 64}, {128, 128}, {256, 128}};

// What a GEMM is launched with.
struct Plan {
  TileName tile = TileName::small;
  int64_t splits = 1;        // of K: each gives sums, which a second kernel adds (split.cuh)
  int64_t blocks = 1;        // of a group, that stay and share the tiles (gemm_hopper.cuh)
};

constexpr int64_t tiles_of(TileName tile, int64_t m, int64_t n) {
  const TileShape shape = kTileShapes[int(tile)];
  return ceil_div(m, shape.rows) * ceil_div(n, shape.channels);
}

// The largest tile whose blocks still fill the device: it reads its operands least often.
constexpr TileName plan_tile(const Device& device, int64_t m, int64_t n, int64_t groups) {
  if (device.arch < 80) return TileName::turing;
  if (device.tile >= 0 && (TileName(device.tile) != TileName::hopper || device.arch == 90)) return TileName(device.tile);
  const auto blocks = [&](TileName tile) { return groups * tiles_of(tile, m, n); };
  if (m > 64 && n <= 64 && blocks(TileName::tall) >= device.processors) return TileName::tall;
  if (m > 64 && n > 64 && blocks(TileName::large) >= device.processors) return TileName::large;
  if (m > 32 && n > 64 && blocks(TileName::medium) >= device.processors / 2) return TileName::medium;
  return TileName::small;
}

// A long K is split where tiles leave at least half of the device idle. The second kernel costs a launch, some
// microseconds, which so much of K takes a block at least; by estimate, not yet measured.
constexpr int64_t kLongK = 2048, kLeastSplitK = 512, kMostSplits = 16;

constexpr int64_t plan_splits(const Device& device, TileName tile, int64_t m, int64_t n, int64_t k, int64_t groups) {
  if (tile == TileName::hopper || k < kLongK) return 1;
  int64_t splits = device.processors / (groups * tiles_of(tile, m, n));
  if (splits > k / kLeastSplitK) splits = k / kLeastSplitK;
  if (splits > kMostSplits) splits = kMostSplits;
  return splits > 1 ? splits : 1;
}

// `n` channels and `k` values in each of `groups`.
constexpr Plan plan_gemm(const Device& device, int64_t m, int64_t n, int64_t k, int64_t groups) {
  const TileName tile = plan_tile(device, m, n, groups);
  const int64_t tiles = tiles_of(tile, m, n), each = device.processors / groups > 1 ? device.processors / groups : 1;
  return {tile, plan_splits(device, tile, m, n, k, groups), tiles < each ? tiles : each};
}

}  // namespace qk::cuda
