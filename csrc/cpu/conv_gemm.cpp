// Convolution as a GEMM: rows are output pixels, K = KH*KW*C/groups; rows are read from the image in place, or gathered block
// by block, right before their use.
#include <algorithm>

#include "../core/epilogue.h"
#include "conv_steps.h"
#include "gemm_blocks.h"

namespace qk {
namespace {

void fill_scales(const Scales& s, const Kernels& k, int64_t image, int64_t first, int64_t count,
                 const PackedRows& out) {
  std::fill_n(out.scale + first, count, s.scale[image / s.images_per_scale]);
  std::fill_n(out.offset + first, count, s.zero[image / s.images_per_scale] - k.x_mask);
}

// Whole lines of output pixels, in place.
void read_pixels(const Conv2dProblem& p, const Image& x, const Scales& s, const ConvPlan& plan, const GemmPlan& gemm, const BlockPosition& at,
                 const PackedRows& out, GemmBlock& block) {
  const int64_t oh = p.oh(), ow = p.ow(), image = at.m0 / (oh * ow), y = at.m0 / ow % oh;
  block.a = window(p, x, image, y, 0, at.group * plan.channels);
  block.lda = p.stride_w * x.pixel;
  block.lines = at.rows / ow;
  block.line_stride = p.stride_h * x.row;
  block.piece_rows = p.kh;
  block.piece_row_stride = p.dilation_h * x.row;
  block.piece_columns = plan.piece_columns;
  block.piece_column_stride = p.dilation_w * x.pixel;
  block.k4 = ceil_div(plan.piece, 4);
  block.rows = ow;
  block.one_scale = true;
  fill_scales(s, *gemm.kernels, image, 0, at.rows, out);
}

// K values of a block of output pixels: KH*KW pieces of a group's channels, neighbouring taps in one piece.
void pack_pixels(const Conv2dProblem& p, const Image& x, const Scales& s, const ConvPlan& plan, const GemmPlan& gemm, const BlockPosition& at,
                 const PackedRows& out, GemmBlock& block) {
  const int64_t oh = p.oh(), ow = p.ow();
  GatherRun run;
  run.pixel_stride = p.stride_w * x.pixel;
  run.row_stride = p.dilation_h * x.row;
  run.column_stride = p.dilation_w * x.pixel;
  run.rows = p.kh;
  run.columns = plan.piece_columns;
  run.piece = plan.piece;
  run.row_pitch = kernel_row(plan.channels, p.kw);
  run.flip = plan.flip_gathered;
  run.slack = plan.slack;
  run.lda = gemm.lda;
  for (int64_t r = 0; r < at.rows; r += run.pixels) {
    const int64_t m = at.m0 + r, image = m / (oh * ow), y = m / ow % oh, column = m % ow;
    run.pixels = std::min(at.rows - r, ow - column);
    run.x = window(p, x, image, y, column, at.group * plan.channels);
    run.a = out.a + r * gemm.lda;
    gemm.kernels->gather(run);
    fill_scales(s, *gemm.kernels, image, r, run.pixels, out);
  }
  read_packed(gemm, out, at.rows, block);
  block.one_scale = at.m0 / (oh * ow) / s.images_per_scale == (at.m0 + at.rows - 1) / (oh * ow) / s.images_per_scale;
}

// Output pixels from m0 on, where they lie in NHWC.
Destination pixels_of(const Conv2dProblem& p, int64_t m0, int64_t channel) {
  const int64_t column = m0 % p.ow();
  return {line_of(p, m0 / p.ow()) + (column * p.oc + channel) * size_of(p.epilogue.out_type), p.oc, 2 * p.y_border * p.oc, p.ow(), column};
}

}  // namespace

void convolve_gemm(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const Image& x, const Scales& s, const Parallel& parallel,
                   char* workspace) {
  const GemmPlan& gemm = part.gemm;
  char* memory = workspace + part.rest;
  Workspace panels(memory + gemm.panels);
  const Epilogue whole = to_whole_panels(panels, p.epilogue, gemm.layout);
  const auto read = plan.path == ConvPath::in_place ? read_pixels : pack_pixels;
  for_blocks(gemm, parallel, memory, [&](const BlockPosition& at, const PackedRows& rows, GemmBlock& block) {
    const int64_t channel = at.group * gemm.layout.n + at.n0;
    if (at.new_rows) read(p, x, s, plan, gemm, at, rows, block);
    if (p.y_nhwc) return multiply(gemm, p.weight, whole, at, pixels_of(p, at.m0, channel), block);
    multiply(gemm, p.weight, whole, at, {rows.c, gemm.block_cols}, block);
    scatter(p, *gemm.kernels, at.m0, at.rows, channel, at.cols, rows.c, gemm.block_cols);
  });
}

}  // namespace qk
