// Depthwise convolution: lines of output pixels, all channels, by kernels/depthwise.h.
#include <algorithm>

#include "channels.h"
#include "conv_steps.h"

namespace qk {
namespace {

// All but the lines that it takes.
DepthwiseBlock block_of(const Conv2dProblem& p, const ConvPlan& plan, const Image& x) {
  DepthwiseBlock b{};
  b.x_mask = plan.mask;
  b.column_stride = x.pixel;
  b.row_stride = x.row;
  b.stride_h = p.stride_h;
  b.stride_w = p.stride_w;
  b.dilation_h = p.dilation_h;
  b.dilation_w = p.dilation_w;
  b.weight = p.weight;
  b.panel_bytes = plan.layout.panel_bytes();
  b.kh = p.kh;
  b.kw = p.kw;
  b.channels = p.oc;
  b.pixels = p.ow();
  b.y_row = p.y_row();
  return b;
}

}  // namespace

void convolve_depthwise(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const Image& x, const Scales& s,
                        const Parallel& parallel, char* workspace) {
  Workspace panels(workspace + part.panels);
  Epilogue epilogue = to_whole_panels(panels, p.epilogue, plan.layout);
  epilogue.w_sum = plan.layout.sums(p.weight, 0);
  const int64_t oh = p.oh(), ow = p.ow(), lines = p.batch * oh, strip = part.strip ? part.strip : lines;
  parallel(part.workers, [&](int64_t worker) {
    const Share mine = share(lines, part.workers, worker);
    char* staged = workspace + part.staged + worker * part.staged_bytes;
    DepthwiseBlock block = block_of(p, plan, x);
    block.epilogue = &epilogue;
    block.memory = workspace + part.kernel + worker * part.kernel_bytes;
    for (int64_t line = mine.begin, next; line < mine.end; line = next) {
      const int64_t image = line / oh, y = line % oh;
      next = std::min({mine.end, line + strip, (image + 1) * oh});
      block.x = window(p, x, image, y, 0, 0);
      block.lines = next - line;
      block.m0 = line * ow;
      block.x_scale = s.scale[image / s.images_per_scale];
      block.x_zero = s.zero[image / s.images_per_scale];
      block.y = p.y_nhwc ? line_of(p, line) : staged;
      plan.kernels->depthwise(block);
      if (!p.y_nhwc) scatter(p, *plan.kernels, line * ow, block.lines * ow, 0, p.oc, staged, p.oc);
    }
  });
}

}  // namespace qk
