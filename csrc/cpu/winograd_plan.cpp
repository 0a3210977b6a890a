#include "winograd_plan.h"

#include <algorithm>
#include <cstdlib>

#include "channels.h"
#include "isa.h"
#include "parallel.h"

namespace qk {
namespace {

constexpr int64_t kTileBytes = 384 * 1024;    // of V at a time, a part of L2
constexpr int64_t kWorkPerThread = 1 << 19;   // products below which another thread costs more than it gives

constexpr double kGain = 0.95;                // of the GEMM's time: less is within what counting cannot tell

// What things take, in the time of a multiply-add of the GEMM kernel at its peak (measured, docs/kernels.md).
struct Rates {
  double gemm;                                // a multiply-add of the whole GEMM
  double product;                             // of two words
  double input, output;                       // a channel of a tile
  double weight;                              // the transform of a channel of an output channel, into memory that is mapped anew
  double byte;                                // of a transformed weight from beyond L2
  int64_t near;                               // bytes of a transformed weight, up to which L2 holds it from block to block, and call to call
};
constexpr Rates kAvx2{1.09, 0.92, 260, 480, 1500, 2, 512 * 1024};
constexpr Rates kAvx512{1.09, 2.05, 470, 1080, 4000, 11, 512 * 1024};  // Zen 5
constexpr Rates kAvx512Intel{1.15, 0.84, 1800, 4200, 4800, 17.6, 0};   // Emerald Rapids; the fit gives its transforms what its products lose

// Null where products of words are too slow to gain anything (neondot: a quarter of the rate of bytes, amx: a sixteenth), or
// where nobody measured.
const Rates* rates_of(Isa isa) {
  if (isa == Isa::avx512vnni) return is_intel() ? &kAvx512Intel : &kAvx512;
  return isa == Isa::avx2 ? &kAvx2 : nullptr;
}

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
  // Blocks of tiles are as few as fit, all alike; where they are fewer than workers, the channels are split too.
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

bool winograd_pays(const Conv2dProblem& p, const PackedLayout& layout, Isa isa) {
  const Rates* r = rates_of(isa);
  if (!r) return false;
  const WinogradPlan plan = plan_winograd(p, layout, p.batch, 1);
  const WinogradWeight& w = plan.weight;
  const double tiles = double(plan.tiles), c = double(w.groups * w.channels), n = double(w.groups * w.n), pairs = double(w.channels) * n;
  const double streamed = w.bytes() > r->near ? double(plan.tile_blocks) * double(w.bytes()) : 0.0;
  const double products = std::max(WinogradWeight::kPoints * tiles * pairs * r->product, streamed * r->byte);
  const double transforms = tiles * (c * r->input + n * r->output) + (p.winograd ? 0.0 : pairs * r->weight);
  return products + transforms < kGain * double(p.batch * p.oh() * p.ow()) * 9 * pairs * r->gemm;
}

int64_t largest_weight_sum(const Conv2dProblem& p) {
  constexpr int64_t step = kPanel * 4, run = 512 * step;   // as many absolute weights as 16 bits can sum
  const PackedLayout layout = weight_layout(p.oc, p.c / p.groups, p.kh, p.kw, p.groups);
  int32_t largest = 0;
  for (int64_t at = 0; at < layout.values_bytes(); at += layout.panel_bytes()) {
    int32_t sums[step] = {};                     // of a panel, [16][4]
    for (int64_t first = 0; first < layout.panel_bytes(); first += run) {
      uint16_t some[step] = {};
      for (int64_t k = first; k < std::min(first + run, layout.panel_bytes()); k += step)
        for (int64_t i = 0; i < step; ++i) some[i] = uint16_t(some[i] + std::abs(p.weight[at + k + i]));
      for (int64_t i = 0; i < step; ++i) sums[i] += some[i];
    }
    for (int64_t n = 0; n < kPanel; ++n) largest = std::max(largest, sums[4 * n] + sums[4 * n + 1] + sums[4 * n + 2] + sums[4 * n + 3]);
  }
  return largest;
}

}  // namespace qk
