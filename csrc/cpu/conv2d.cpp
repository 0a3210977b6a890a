// The way of a convolution:
//   1. dynamic scales: one an image
//   2. x -> int8 NHWC with its border written out (zero point, or mirrored values), so that nothing later asks
//      where an image ends; skipped where x already is that
//   3. rows are output pixels, K = KH*KW*C/groups: packed block by block and multiplied; or the depthwise kernel
#include "conv2d.h"

#include "../core/epilogue.h"
#include "gemm_blocks.h"

namespace qk {
namespace {

constexpr int64_t kElementsPerThread = 1 << 15;  // copied or scanned, below which another thread does not pay

// What step 3 reads: int8, [batch][h][w][c] with every pixel's channels together.
struct Image {
  const int8_t* data;
  int64_t h, w, c;
};

struct Scales {
  const float* scale;
  const int32_t* zero;
  int64_t images_per_scale;  // batch or 1
};

bool is_packed_nhwc(const Conv2dProblem& p) {
  return p.x_strides[1] == 1 && p.x_strides[3] == p.c &&
         p.x_strides[2] == p.w * p.c && p.x_strides[0] == p.h * p.w * p.c;
}

bool has_border(const Conv2dProblem& p) { return p.pad_top | p.pad_bottom | p.pad_left | p.pad_right; }

// Depthwise with a multiplier: each input channel is written that often, so that lanes stay output channels.
int64_t repeat(const Conv2dProblem& p) { return conv2d_path(p) == Conv2dPath::depthwise ? p.oc / p.c : 1; }

bool needs_image(const Conv2dProblem& p) {
  return p.x_type != DType::s8 || has_border(p) || !is_packed_nhwc(p) || repeat(p) > 1 ||
         (conv2d_path(p) == Conv2dPath::depthwise && p.c % kPanel != 0);  // its last vector reads past a pixel
}

int workers_for(int64_t elements, int threads) {
  return int(std::clamp<int64_t>(elements / kElementsPerThread, 1, std::clamp(threads, 1, 256)));
}

// The source index of padded position i in an axis of n, or -1 for the zero point.
int64_t source_index(int64_t i, int64_t n, PadMode mode) {
  if (i >= 0 && i < n) return i;
  switch (mode) {
    case PadMode::zeros: return -1;
    case PadMode::reflect: return i < 0 ? -i : 2 * (n - 1) - i;
    case PadMode::replicate: return i < 0 ? 0 : n - 1;
    case PadMode::circular: return i < 0 ? i + n : i - n;
  }
  return -1;
}

const char* pixel(const Conv2dProblem& p, int64_t image, int64_t h, int64_t w) {
  return static_cast<const char*>(p.x) +
         (image * p.x_strides[0] + h * p.x_strides[2] + w * p.x_strides[3]) * size_of(p.x_type);
}

// ---- 1. dynamic scales

void find_scales(const Conv2dProblem& p, const Kernels& k, const Parallel& parallel, float* scale, int32_t* zero) {
  const int64_t item = size_of(p.x_type);
  const bool rows_together = p.x_strides[1] == 1 && p.x_strides[3] == p.c;
  parallel(p.batch, [&](int64_t image) {
    Extremes ends{0.0f, 0.0f};
    const auto include = [&](const void* x, int64_t count) {
      const Extremes e = k.extremes(x, p.x_type, count);
      ends.lo = std::min(ends.lo, e.lo);
      ends.hi = std::max(ends.hi, e.hi);
    };
    for (int64_t h = 0; h < p.h; ++h) {
      if (rows_together) {
        include(pixel(p, image, h, 0), p.w * p.c);
        continue;
      }
      for (int64_t c = 0; c < p.c; ++c) {
        const char* row = pixel(p, image, h, 0) + c * p.x_strides[1] * item;
        if (p.x_strides[3] == 1) include(row, p.w);
        else for (int64_t w = 0; w < p.w; ++w) include(row + w * p.x_strides[3] * item, 1);
      }
    }
    const ScaleZero sz = dynamic_scale(ends.lo, ends.hi, p.range == Range::dynamic_symmetric);
    scale[image] = sz.scale;
    zero[image] = sz.zero;
  });
}

// ---- 2. the int8 image with its border

// One row of pixels from channel planes: quantize runs of each plane, then interleave, in pieces that stay in L1.
void interleave_row(const Conv2dProblem& p, const Kernels& k, int64_t image, int64_t h, float inv_scale, int32_t zero,
                    int8_t* out) {
  constexpr int64_t kPiece = 64, kChannels = 64;
  int8_t plane[kChannels][kPiece];
  const int64_t item = size_of(p.x_type);
  for (int64_t w0 = 0; w0 < p.w; w0 += kPiece) {
    const int64_t piece = std::min(kPiece, p.w - w0);
    for (int64_t c0 = 0; c0 < p.c; c0 += kChannels) {
      const int64_t channels = std::min(kChannels, p.c - c0);
      for (int64_t c = 0; c < channels; ++c) {
        const char* x = pixel(p, image, h, w0) + (c0 + c) * p.x_strides[1] * item;
        if (p.x_strides[3] == 1) k.quantize(x, p.x_type, piece, inv_scale, zero, false, plane[c]);
        else
          for (int64_t w = 0; w < piece; ++w)
            k.quantize(x + w * p.x_strides[3] * item, p.x_type, 1, inv_scale, zero, false, &plane[c][w]);
      }
      for (int64_t w = 0; w < piece; ++w)
        for (int64_t c = 0; c < channels; ++c) out[(w0 + w) * p.c + c0 + c] = plane[c][w];
    }
  }
}

void quantize_row(const Conv2dProblem& p, const Kernels& k, int64_t image, int64_t h, float inv_scale, int32_t zero,
                  int8_t* out) {
  if (p.x_strides[1] == 1 && p.x_strides[3] == p.c) {
    k.quantize(pixel(p, image, h, 0), p.x_type, p.w * p.c, inv_scale, zero, false, out);
  } else if (p.x_strides[1] == 1) {
    for (int64_t w = 0; w < p.w; ++w)
      k.quantize(pixel(p, image, h, w), p.x_type, p.c, inv_scale, zero, false, out + w * p.c);
  } else {
    interleave_row(p, k, image, h, inv_scale, zero, out);
  }
}

void repeat_channels(const int8_t* row, int64_t count, int64_t times, int8_t* out) {
  for (int64_t i = 0; i < count; ++i) std::fill_n(out + i * times, times, row[i]);
}

// Padded rows [begin, end) of all images. Interior values are written first, the sides copied from them.
void write_image_rows(const Conv2dProblem& p, const Kernels& k, const Scales& s, Share rows, int8_t* line, int8_t* out) {
  const int64_t times = repeat(p), c = p.c * times, row_bytes = p.padded_w() * c;
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const int64_t image = i / p.padded_h(), h = source_index(i % p.padded_h() - p.pad_top, p.h, p.pad_mode);
    const int32_t zero = s.zero[image / s.images_per_scale];
    int8_t* row = out + i * row_bytes;
    if (h < 0) {
      std::memset(row, zero, size_t(row_bytes));
      continue;
    }
    int8_t* inside = row + p.pad_left * c;
    quantize_row(p, k, image, h, 1.0f / s.scale[image / s.images_per_scale], zero, times > 1 ? line : inside);
    if (times > 1) repeat_channels(line, p.w * p.c, times, inside);
    for (int64_t w = -p.pad_left; w < p.w + p.pad_right; w = w == -1 ? p.w : w + 1) {
      if (w >= 0 && w < p.w) continue;
      const int64_t from = source_index(w, p.w, p.pad_mode);
      if (from < 0) std::memset(inside + w * c, zero, size_t(c));
      else std::memcpy(inside + w * c, inside + from * c, size_t(c));
    }
  }
}

// ---- 3. output pixels as rows

// K values of output pixels [m0, m0 + rows): KH*KW pieces of C/groups channels, neighbouring taps in one copy.
void pack_pixels(const Conv2dProblem& p, const Image& x, const Scales& s, const GemmPlan& plan, int64_t group,
                 int64_t m0, int64_t rows, const PackedRows& out) {
  const Kernels& k = *plan.kernels;
  const int64_t oh = p.oh(), ow = p.ow(), c = p.c / p.groups;
  const bool together = p.groups == 1 && p.dilation_w == 1;
  const int64_t pieces = together ? 1 : p.kw, piece = together ? p.kw * c : c;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t m = m0 + r, image = m / (oh * ow), y = m / ow % oh, column = m % ow;
    const int8_t* first = x.data + ((image * x.h + y * p.stride_h) * x.w + column * p.stride_w) * x.c + group * c;
    int8_t* a = out.a + r * plan.lda;
    for (int64_t i = 0; i < p.kh; ++i)
      for (int64_t j = 0; j < pieces; ++j, a += piece)
        k.quantize(first + (i * p.dilation_h * x.w + j * p.dilation_w) * x.c, DType::s8, piece, 0, 0, k.x_offset != 0, a);
    out.scale[r] = s.scale[image / s.images_per_scale];
    out.offset[r] = s.zero[image / s.images_per_scale] + k.x_offset;
  }
}

// A staged block [rows][cols] to its channel planes.
template <class T>
void scatter_planes(const Conv2dProblem& p, const BlockPosition& at, const T* block, int64_t stride) {
  const int64_t pixels = p.oh() * p.ow(), first = at.group * (p.oc / p.groups) + at.n0;
  for (int64_t r0 = 0; r0 < at.rows;) {
    const int64_t image = (at.m0 + r0) / pixels, begin = (at.m0 + r0) % pixels;
    const int64_t rows = std::min(at.rows - r0, pixels - begin);
    for (int64_t n = 0; n < at.cols; ++n) {
      T* y = static_cast<T*>(p.y) + (image * p.oc + first + n) * pixels + begin;
      for (int64_t r = 0; r < rows; ++r) y[r] = block[(r0 + r) * stride + n];
    }
    r0 += rows;
  }
}

void scatter(const Conv2dProblem& p, const BlockPosition& at, const void* block, int64_t stride) {
  switch (size_of(p.epilogue.out_type)) {
    case 1: return scatter_planes(p, at, static_cast<const uint8_t*>(block), stride);
    case 2: return scatter_planes(p, at, static_cast<const uint16_t*>(block), stride);
    default: return scatter_planes(p, at, static_cast<const uint32_t*>(block), stride);
  }
}

GemmPlan plan_pixels(const Conv2dProblem& p, Isa isa, int threads) {
  return plan_gemm(p.batch * p.oh() * p.ow(), weight_layout(p.oc, p.c / p.groups, p.kh, p.kw, p.groups), isa, threads);
}

int64_t staged_item(const Conv2dProblem& p) { return p.y_nhwc ? 0 : size_of(p.epilogue.out_type); }

void gemm_path(const Conv2dProblem& p, const Image& x, const Scales& s, Isa isa, const Parallel& parallel, void* memory) {
  const GemmPlan plan = plan_pixels(p, isa, parallel.threads);
  const int64_t item = size_of(p.epilogue.out_type), group_channels = p.oc / p.groups;
  gemm_blocks(
      plan, p.weight, p.epilogue, staged_item(p), parallel, memory,
      [&](int64_t group, int64_t m0, int64_t rows, const PackedRows& out) {
        pack_pixels(p, x, s, plan, group, m0, rows, out);
      },
      [&](const BlockPosition& at, const PackedRows& rows) -> Destination {
        if (!p.y_nhwc) return {rows.c, plan.block_cols};
        return {static_cast<char*>(p.y) + (at.m0 * p.oc + at.group * group_channels + at.n0) * item, p.oc};
      },
      [&](const BlockPosition& at, const PackedRows& rows) {
        if (!p.y_nhwc) scatter(p, at, rows.c, plan.block_cols);
      });
}

void depthwise_path(const Conv2dProblem& p, const Image& x, const Scales& s, Isa isa, const Parallel& parallel,
                    void* memory) {
  const PackedLayout layout = weight_layout(p.oc, 1, p.kh, p.kw, p.groups);
  Workspace w(memory);
  Epilogue epilogue = to_whole_panels(w, p.epilogue, layout);
  epilogue.w_sum = layout.sums(p.weight, 0);
  const int64_t oh = p.oh(), ow = p.ow(), lines = p.batch * oh, item = size_of(epilogue.out_type);
  const int workers = std::min(workers_for(lines * ow * p.oc * p.kh * p.kw / 4, parallel.threads), int(std::max<int64_t>(lines, 1)));
  char* staged = staged_item(p) ? w.take<char>(workers * round_up(ow * p.oc * item, 64)) : nullptr;
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(lines, workers, worker);
    for (int64_t line = mine.begin; line < mine.end; ++line) {
      const int64_t image = line / oh, y = line % oh;
      DepthwiseRow row;
      row.x = x.data + (image * x.h + y * p.stride_h) * x.w * x.c;
      row.pixel_stride = p.stride_w * x.c;
      row.tap_stride_h = p.dilation_h * x.w * x.c;
      row.tap_stride_w = p.dilation_w * x.c;
      row.weight = p.weight;
      row.panel_bytes = layout.panel_bytes();
      row.kh = p.kh;
      row.kw = p.kw;
      row.channels = p.oc;
      row.pixels = ow;
      row.m0 = line * ow;
      row.x_scale = s.scale[image / s.images_per_scale];
      row.x_zero = s.zero[image / s.images_per_scale];
      char* own = staged ? staged + worker * round_up(ow * p.oc * item, 64) : nullptr;
      row.y = own ? own : static_cast<char*>(p.y) + line * ow * p.oc * item;
      row.epilogue = &epilogue;
      kernels_of(isa).depthwise(row);
      if (own) {
        Conv2dProblem one_group = p;
        one_group.groups = 1;
        scatter(one_group, {0, line * ow, ow, 0, p.oc}, own, p.oc);
      }
    }
  });
}

// Memory of each step, in order; run with a null base to count.
struct Memory {
  float* scale = nullptr;
  int32_t* zero = nullptr;
  int8_t* image = nullptr;
  int8_t* lines = nullptr;
  char* rest = nullptr;
  int64_t before_rest = 0;
};

Memory take_memory(const Conv2dProblem& p, int threads, void* base) {
  Workspace w(base);
  Memory m;
  if (p.range != Range::given) {
    m.scale = w.take<float>(p.batch);
    m.zero = w.take<int32_t>(p.batch);
  }
  if (needs_image(p)) {
    m.image = w.take<int8_t>(p.batch * p.padded_h() * p.padded_w() * p.c * repeat(p) + 64);
    if (repeat(p) > 1) m.lines = w.take<int8_t>(std::clamp(threads, 1, 256) * round_up(p.w * p.c, 64));
  }
  m.before_rest = w.used();
  m.rest = w.take<char>(0);
  return m;
}

}  // namespace

Conv2dPath conv2d_path(const Conv2dProblem& p) {
  return is_depthwise(p.c / p.groups, p.groups) ? Conv2dPath::depthwise : Conv2dPath::gemm;
}

const char* conv2d_path_name(Conv2dPath path) { return path == Conv2dPath::depthwise ? "depthwise" : "gemm"; }

int64_t conv2d_workspace(const Conv2dProblem& p, Isa isa, int threads) {
  const int64_t before = take_memory(p, threads, nullptr).before_rest;
  if (conv2d_path(p) == Conv2dPath::gemm)
    return before + blocks_workspace(plan_pixels(p, isa, threads), p.epilogue, staged_item(p));
  Workspace w(nullptr);
  to_whole_panels(w, p.epilogue, weight_layout(p.oc, 1, p.kh, p.kw, p.groups));
  return before + w.used() + std::clamp(threads, 1, 256) * round_up(p.ow() * p.oc * staged_item(p), 64);
}

void conv2d(const Conv2dProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const Kernels& kernels = kernels_of(isa);
  const Memory memory = take_memory(p, parallel.threads, workspace);
  Scales scales{p.epilogue.x_scale, p.epilogue.x_zero, std::max<int64_t>(1, p.epilogue.rows_per_scale / std::max<int64_t>(1, p.oh() * p.ow()))};
  if (p.range != Range::given) {
    find_scales(p, kernels, parallel, memory.scale, memory.zero);
    scales = {memory.scale, memory.zero, 1};
  }
  Image x{static_cast<const int8_t*>(p.x), p.h, p.w, p.c};
  if (needs_image(p)) {
    const int64_t lines = p.batch * p.padded_h();
    const int workers = workers_for(p.batch * p.h * p.w * p.c, parallel.threads);
    parallel(workers, [&](int64_t worker) {
      int8_t* line = memory.lines ? memory.lines + worker * round_up(p.w * p.c, 64) : nullptr;
      write_image_rows(p, kernels, scales, share(lines, workers, worker), line, memory.image);
    });
    x = {memory.image, p.padded_h(), p.padded_w(), p.c * repeat(p)};
  }
  if (conv2d_path(p) == Conv2dPath::depthwise) depthwise_path(p, x, scales, isa, parallel, memory.rest);
  else gemm_path(p, x, scales, isa, parallel, memory.rest);
}

}  // namespace qk
