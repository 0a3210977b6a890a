// How a convolution is taken by an exact F(4x4, 3x3) (core/winograd.h): whether it pays, how its tiles are cut into blocks,
// and where everything lies in the workspace.
#pragma once
#include "kernel.h"
#include "../core/winograd.h"

namespace qk {

// The plan of some images that go together. A block is some tiles of a group by some panels; a worker takes whole blocks.
struct WinogradPlan {
  PackedLayout layout{1, 1, 1};
  WinogradWeight weight{1, 1, 1};
  int64_t lines, columns, tiles;         // tiles of an image; of all images
  int64_t block_tiles, tile_blocks;
  int64_t block_panels, panel_blocks;    // panels: an even number
  int workers;
  int64_t v_tile, v_point, m_point;      // words, words and sums from one to the next
  // Offsets of the workspace: per-channel values to whole panels, then for each worker V, M, its tiles and staged outputs.
  int64_t panels, rows, rows_each, m, tile, staged, bytes;

  int64_t tasks() const { return layout.groups * tile_blocks * panel_blocks; }
};

WinogradWeight winograd_weight(const Conv2dProblem& p, const PackedLayout& layout);
WinogradPlan plan_winograd(const Conv2dProblem& p, const PackedLayout& layout, int64_t images, int threads);

// Whether it takes less time than a GEMM over output pixels, by counted work; the weight's transform is counted unless it is kept.
bool winograd_pays(const Conv2dProblem& p, const PackedLayout& layout, Isa isa);

// The value of Conv2dProblem::weight_sum for a packed weight.
int64_t largest_weight_sum(const Conv2dProblem& p);

}  // namespace qk
