// Convolution by an exact F(4x4, 3x3): a worker takes a block of tiles through V, and for two panels of channels at a time
// through M to its outputs.
#include <algorithm>

#include "../core/epilogue.h"
#include "channels.h"
#include "conv2d.h"
#include "conv_steps.h"

namespace qk {
namespace {

// What a worker has of the workspace.
struct OwnMemory {
  int16_t* v;
  int32_t* m;
  WinogradTile* tile;
  char* staged;

  OwnMemory(const WinogradPlan& plan, char* memory, int64_t worker) {
    char* own = memory + plan.rows + worker * plan.rows_each;
    v = reinterpret_cast<int16_t*>(own);
    m = reinterpret_cast<int32_t*>(own + plan.m);
    tile = reinterpret_cast<WinogradTile*>(own + plan.tile);
    staged = own + plan.staged;
  }
};

struct Block {
  int64_t group, tile, tiles, panel, panels;
};

Block block_of(const WinogradPlan& plan, int64_t task) {
  const int64_t source = task / plan.panel_blocks;
  Block b;
  b.group = source / plan.tile_blocks;
  b.tile = source % plan.tile_blocks * plan.block_tiles;
  b.tiles = std::min(plan.block_tiles, plan.tiles - b.tile);
  b.panel = task % plan.panel_blocks * plan.block_panels;
  b.panels = std::min(plan.block_panels, plan.weight.panels() - b.panel);
  return b;
}

void transform_tiles(const Conv2dProblem& p, const ConvPlan& plan, const WinogradPlan& winograd, const Image& x, const Block& b, const OwnMemory& own) {
  const int64_t an_image = winograd.lines * winograd.columns;
  for (int64_t i = 0; i < b.tiles; ++i) {
    const int64_t t = b.tile + i, y = t % an_image / winograd.columns * 4, column = t % winograd.columns * 4;
    const int8_t* first = window(p, x, t / an_image, y, column, b.group * winograd.weight.channels);
    const auto exist = [](int64_t outputs) { return int32_t(std::min<int64_t>(outputs, 4) + 2); };
    own.tile[i] = {first, exist(p.oh() - y), exist(p.ow() - column), t / an_image, y, column};
  }
  plan.kernels->winograd_input({own.tile, b.tiles, x.row, x.pixel, winograd.weight.channels, plan.mask, own.v, winograd.v_point, winograd.v_tile});
}

// M of two panels to C, as many tiles at a time as lie side by side.
void write_outputs(const Conv2dProblem& p, const ConvPlan& plan, const WinogradPlan& winograd, const Scales& s, const Epilogue& e, const Block& b,
                   int64_t panel, const OwnMemory& own) {
  const int64_t item = size_of(p.epilogue.out_type), n0 = panel * kPanel, channel = b.group * winograd.layout.n + n0;
  WinogradOutput out;
  out.m_point = winograd.m_point, out.line_rows = p.ow();
  GemmBlock& block = out.block;
  block.cols = std::min(WinogradProducts::kColumns, winograd.layout.n - n0);
  block.n0 = n0, block.one_scale = true, block.epilogue = &e;
  for (int64_t i = 0; i < b.tiles; i += out.tiles) {
    const WinogradTile& tile = own.tile[i];
    out.tiles = std::min({WinogradOutput::kTiles, b.tiles - i, winograd.columns - tile.column / 4});
    out.m = own.m + i * WinogradProducts::kColumns;
    out.lines = std::min<int64_t>(4, p.oh() - tile.y);
    out.pixels = std::min(4 * out.tiles, p.ow() - tile.column);
    const int64_t scale = tile.image / s.images_per_scale;
    block.row_scale = s.scale + scale, block.row_offset = s.zero + scale;
    block.m0 = (tile.image * p.oh() + tile.y) * p.ow() + tile.column;
    block.c = own.staged, block.c_stride = WinogradProducts::kColumns, block.c_gap = 0;
    if (p.y_nhwc) {
      block.c = line_of(p, tile.image * p.oh() + tile.y) + (tile.column * p.oc + channel) * item;
      block.c_stride = p.oc, block.c_gap = 2 * p.y_border * p.oc;
      block.c_line = p.ow(), block.c_column = tile.column;
    }
    plan.kernels->winograd_output(out);
    for (int64_t line = 0; line < out.lines && !p.y_nhwc; ++line)
      scatter(p, *plan.kernels, block.m0 + line * p.ow(), out.pixels, channel, block.cols,
              own.staged + line * p.ow() * WinogradProducts::kColumns * item, WinogradProducts::kColumns);
  }
}

}  // namespace

void transform_weight(const Conv2dProblem& p, const ConvPlan& plan, const Parallel& parallel, int16_t* u) {
  const WinogradWeight w = winograd_weight(p, plan.layout);
  const int64_t panels = w.groups * w.panels();
  const int workers = workers_for(panels * w.panel(), kElementsPerThread, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(panels, workers, worker);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int8_t* panel = plan.layout.values(p.weight, i / w.panels()) + i % w.panels() * plan.layout.panel_bytes();
      plan.kernels->winograd_weights(panel, w.channels, kernel_row(w.channels, p.kw), w.point(), u + i * w.panel());
    }
  });
}

void convolve_winograd(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const Image& x, const Scales& s, const Parallel& parallel,
                       const int16_t* u, char* workspace) {
  const WinogradPlan& winograd = part.winograd;
  const WinogradWeight& w = winograd.weight;
  char* memory = workspace + part.rest;
  Workspace panels(memory + winograd.panels);
  const Epilogue whole = to_whole_panels(panels, p.epilogue, winograd.layout);
  parallel(winograd.workers, [&](int64_t worker) {
    const OwnMemory own(winograd, memory, worker);
    const Share tasks = share(winograd.tasks(), winograd.workers, worker);
    for (int64_t task = tasks.begin; task < tasks.end; ++task) {
      const Block b = block_of(winograd, task);
      if (task == tasks.begin || b.panel == 0) transform_tiles(p, plan, winograd, x, b, own);
      const Epilogue e = epilogue_of_group(whole, winograd.layout, p.weight, b.group);
      for (int64_t panel = b.panel; panel < b.panel + b.panels; panel += 2) {
        const int64_t together = std::min<int64_t>(2, b.panel + b.panels - panel);
        plan.kernels->winograd_products({own.v, winograd.v_point, winograd.v_tile, u + (b.group * w.panels() + panel) * w.panel(), w.panel(), w.point(),
                                        together, w.pairs(), b.tiles, own.m, winograd.m_point});
        write_outputs(p, plan, winograd, s, e, b, panel, own);
      }
    }
  });
}

}  // namespace qk
