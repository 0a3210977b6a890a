// The way of a convolution:
//   1. dynamic scales: one an image
//   2. x -> int8 NHWC, skipped where x already is that
//   3. rows are output pixels, K = KH*KW*C/groups: plain rows where a window is a pixel, else gathered as they are
//      multiplied, which also pads; or the depthwise kernel
#include "conv2d.h"

#include "depthwise.cuh"
#include "quantize.h"
#include "tiles.cuh"
#include "../core/workspace.h"

namespace qk::cuda {
namespace {

bool is_nhwc(const Conv2dProblem& p) {
  const int64_t sizes[] = {p.batch, p.c, p.h, p.w};
  return lies_as_pixels(sizes, p.x_strides);
}

// Read 16 bytes at a time where channels allow it.
bool reads_in_place(const Conv2dProblem& p) {
  return p.x_type == DType::s8 && is_nhwc(p) && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
}

PackedLayout layout_of(const Conv2dProblem& p) { return weight_layout(p.oc, p.c / p.groups, p.kh, p.kw, p.groups); }
int64_t rows_of(const Conv2dProblem& p) { return p.batch * p.oh() * p.ow(); }

Plan plan_of(const Conv2dProblem& p, const Device& device) {
  const PackedLayout l = layout_of(p);
  return is_depthwise(p.c / p.groups, p.groups) ? Plan{} : plan_gemm(device, rows_of(p), l.n, l.k, l.groups);
}

struct Memory {
  int8_t* q = nullptr;       // [batch][h][w][c]
  float* scale = nullptr;    // [batch], of dynamic ranges
  int32_t* zero = nullptr;
  uint32_t* extremes = nullptr;
  int32_t* sums = nullptr;   // of splits
  int64_t bytes = 0;

  Memory(const Conv2dProblem& p, const Plan& plan, void* base) {
    Workspace w(base);
    if (!reads_in_place(p)) q = w.take<int8_t>(p.batch * p.h * p.w * p.c);
    if (p.range != Range::given) {
      scale = w.take<float>(p.batch);
      zero = w.take<int32_t>(p.batch);
      extremes = w.take<uint32_t>(2 * p.batch);
    }
    sums = w.take<int32_t>(split_sums(layout_of(p), rows_of(p), plan.splits));
    bytes = w.used();
  }
};

int quantize_image(const Conv2dProblem& p, const Scales& scales, bool scale_each, int8_t* q, Stream stream) {
  if (!is_nhwc(p)) {
    QuantizePlanes planes;
    planes.batch = p.batch, planes.c = p.c, planes.pixels = p.h * p.w;
    planes.x = p.x, planes.x_type = p.x_type;
    planes.scale_each = scale_each, planes.scales = scales;
    planes.q = q;
    return quantize_planes(planes, stream);
  }
  QuantizeRows rows;
  rows.rows = p.batch * p.h, rows.cols = rows.x_stride = rows.q_stride = p.w * p.c;
  rows.rows_per_scale = scale_each ? p.h : rows.rows;
  rows.x = p.x, rows.x_type = p.x_type, rows.scales = scales;
  rows.q = q;
  return quantize_rows(rows, stream);
}

Image image_of(const Conv2dProblem& p, const GemmArgs& g, const int8_t* x) {
  Image i{};
  i.x = x;
  i.h = int(p.h), i.w = int(p.w), i.c = int(p.c), i.channels = int(p.c / g.layout.groups);
  i.stride_h = int(p.stride_h), i.stride_w = int(p.stride_w);
  i.dilation_h = int(p.dilation_h), i.dilation_w = int(p.dilation_w);
  i.pad_top = int(p.pad_top), i.pad_left = int(p.pad_left), i.pad_mode = p.pad_mode;
  i.m = g.m;
  i.pixels = Divisor(p.oh() * p.ow()), i.line = Divisor(p.ow());
  i.used_k = int(p.kw) * i.channels;
  i.row_k = Divisor(kernel_row(i.channels, p.kw)), i.tap_k = Divisor(i.channels);
  i.k = int(g.layout.k);
  i.x_zero = g.epilogue.x_zero;
  i.zero_each = g.epilogue.rows_per_scale != g.m;
  return i;
}

int launch_depthwise(const Conv2dProblem& p, const GemmArgs& g, const Image& image, Stream stream) {
  const bool vectors = g.vectors && !g.planes && p.oc == p.c;
  const int64_t each = p.oc / (vectors ? 4 : 1);
  const DepthwiseArgs d{g, image, int(p.kw), int(p.oc / p.c), Divisor(each)};
  const Grid grid{ceil_div(g.m * each, kDepthwiseThreads)};
  if (vectors) return launch<depthwise_kernel<Lanes<4>>>(grid, kDepthwiseThreads, 0, stream, d);
  return launch<depthwise_kernel<Lanes<1>>>(grid, kDepthwiseThreads, 0, stream, d);
}

bool is_pointwise(const Conv2dProblem& p) {
  return p.kh == 1 && p.kw == 1 && p.stride_h == 1 && p.stride_w == 1 && p.oh() == p.h && p.ow() == p.w;
}

}  // namespace

int64_t conv2d_workspace(const Conv2dProblem& p) {
  if (rows_of(p) == 0) return 0;
  Device device;
  current_device(&device);  // an error comes back from conv2d
  return Memory(p, plan_of(p, device), nullptr).bytes;
}

int conv2d(const Conv2dProblem& p, void* workspace, Stream stream) {
  GemmArgs g;
  g.m = rows_of(p);
  if (g.m == 0) return 0;
  Device device;
  if (const int error = current_device(&device)) return error;
  const Plan plan = plan_of(p, device);
  const Memory memory(p, plan, workspace);
  g.layout = layout_of(p);
  g.weight = p.weight;
  g.c = p.y, g.c_stride = p.oc;
  g.planes = !p.y_nhwc && p.oh() * p.ow() > 1;
  g.plane = Divisor(p.oh() * p.ow());
  g.epilogue = p.epilogue;
  g.epilogue.w_sum = g.layout.sums(p.weight, 0);
  g.splits = plan.splits, g.sums = memory.sums;
  if (p.range != Range::given) {
    g.epilogue.rows_per_scale = p.oh() * p.ow();
    g.epilogue.x_scale = memory.scale;
    g.epilogue.x_zero = memory.zero;
  }
  const int8_t* x = static_cast<const int8_t*>(p.x);
  if (memory.q) {
    const Scales scales{p.range, const_cast<float*>(g.epilogue.x_scale), const_cast<int32_t*>(g.epilogue.x_zero), memory.extremes};
    if (const int error = quantize_image(p, scales, g.epilogue.rows_per_scale != g.m, memory.q, stream)) return error;
    x = memory.q;
  }
  complete(g);
  const Image image = image_of(p, g, x);
  if (is_depthwise(p.c / p.groups, p.groups)) return launch_depthwise(p, g, image, stream);
  if (image.channels % 16 == 0 && g.layout.groups == 1 && is_pointwise(p)) return launch_gemm(plan, g, Rows{x, g.m, p.c, int(p.c)}, stream);
  if (image.channels % 16 == 0) return launch_gemm(plan, g, Windows<16>{image}, stream);
  if (image.channels % 4 == 0) return launch_gemm(plan, g, Windows<4>{image}, stream);
  return launch_gemm(plan, g, AnyWindows{image}, stream);
}

}  // namespace qk::cuda
