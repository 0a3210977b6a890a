#include "winograd_plan.h"

#include <algorithm>

#include "gemm_blocks.h"

namespace qk {
namespace {

constexpr int64_t kTileBytes = 384 * 1024;    // of V at a time, a part of L2
constexpr int64_t kWorkPerThread = 1 << 19;   // products below which another thread costs more than it gives

void plan_memory(const Conv2dProblem& p, WinogradPlan& plan) {
  Workspace w(nullptr), own(nullptr);
  plan.panels = w.used();
  to_whole_panels(w, p.epilogue, plan.layout);
  own.place(WinogradWeight::kPoints * plan.v_point * int64_t(sizeof(int16_t)));
  plan.m = own.place(WinogradWeight::kPoints * plan.m_point * int64_t(sizeof(int32_t)));
  plan.tile = own.place(plan.block_tiles * int64_t(sizeof(WinogradTile)));
  const int64_t staged_rows = 3 * p.ow() + 4 * WinogradOutput::kTiles;
  plan.staged = own.place(p.y_nhwc ? 0 : staged_rows * WinogradProducts::kColumns * size_of(p.epilogue.out_type));
  plan.rows_each = own.used();
  plan.rows = w.place(plan.workers * plan.rows_each);
  plan.bytes = w.used();
}

}  // namespace

WinogradWeight winograd_weight(const Conv2dProblem& p, const PackedLayout& layout) { return {layout.groups, layout.n, p.c / layout.groups}; }

WinogradPlan plan_winograd(const Conv2dProblem& p, const PackedLayout& layout, int64_t images, int threads) {
  WinogradPlan plan;
  plan.layout = layout;
  plan.weight = winograd_weight(p, layout);
  plan.lines = ceil_div(p.oh(), 4), plan.columns = ceil_div(p.ow(), 4);
  plan.tiles = images * plan.lines * plan.columns;
  const int64_t work = plan.tiles * WinogradWeight::kPoints * plan.weight.channels * layout.groups * layout.n;
  plan.workers = workers_for(work, kWorkPerThread, threads);
  plan.v_tile = round_up(plan.weight.channels, WinogradInput::kReadOn) + WinogradInput::kReadOn;  // off the powers of two
  // As few blocks of tiles as fit, all alike; fewer than workers: the channels are split too.
  const int64_t tile_bytes = WinogradWeight::kPoints * plan.v_tile * int64_t(sizeof(int16_t));
  const int64_t fit = std::max<int64_t>(kTileBytes / tile_bytes, 1), sources = layout.groups;
  int64_t blocks = std::max<int64_t>(ceil_div(plan.tiles, fit), 1);
  if (sources * blocks % plan.workers && sources * blocks < 8 * plan.workers && plan.tiles >= 8 * plan.workers)
    blocks = ceil_div(round_up(sources * blocks, plan.workers), sources);
  plan.block_tiles = ceil_div(std::max<int64_t>(plan.tiles, 1), blocks);
  plan.tile_blocks = ceil_div(plan.tiles, plan.block_tiles);
  const int64_t splits = ceil_div(plan.workers, std::max<int64_t>(plan.tile_blocks * sources, 1));
  plan.block_panels = round_up(ceil_div(plan.weight.panels(), splits), 2);
  plan.panel_blocks = ceil_div(plan.weight.panels(), plan.block_panels);
  plan.workers = int(std::clamp<int64_t>(plan.tasks(), 1, plan.workers));
  plan.v_point = plan.block_tiles * plan.v_tile;
  plan.m_point = plan.block_tiles * WinogradProducts::kColumns;
  plan_memory(p, plan);
  return plan;
}

bool winograd_pays(const Conv2dProblem&, const PackedLayout&, Isa, bool) { return false; }

}  // namespace qk
