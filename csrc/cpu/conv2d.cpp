// The way of a convolution:
//   1. dynamic scales: one an image
//   2. x -> int8 NHWC with its border written out (zero point, or mirrored values), so that nothing later asks
//      where an image ends; skipped where x already is that
//   3. rows are output pixels, K = KH*KW*C/groups: read from the image in place, or packed block by block, and
//      multiplied; or the depthwise kernel
//   4. y's own border, where the step after wants one
#include "conv2d.h"

#include "../core/epilogue.h"
#include "../core/padding.h"
#include "gemm_blocks.h"

namespace qk {

namespace {

bool depthwise(const Conv2dProblem& p) { return is_depthwise(p.c / p.groups, p.groups); }

constexpr int64_t kElementsPerThread = 1 << 15;  // copied or scanned, below which another thread does not pay

// What step 3 reads: int8, padding included, with every pixel's channels together.
struct Image {
  const int8_t* data;
  int64_t image, row, pixel; // bytes from one to the next
  bool slack;                // bytes behind the last pixel may be read
  int8_t mask;               // what its bytes are XORed with
};

constexpr int64_t kWorkPerImage = 1 << 19;   // multiply-adds of a worker's images, below which all share each
constexpr int64_t kImageBytes = 512 * 1024;  // of step 2 at a time, so that step 3 finds it in L2

struct Scales {
  const float* scale;
  const int32_t* zero;
  int64_t images_per_scale;  // batch or 1
};

bool is_packed_nhwc(const Conv2dProblem& p) {
  return p.x_strides[1] == 1 && p.x_strides[3] == p.c &&
         p.x_strides[2] == p.w * p.c && p.x_strides[0] == p.h * p.w * p.c;
}

// Planes whose rows follow each other: NCHW, or a batch slice of it.
bool is_planar(const Conv2dProblem& p) { return p.x_strides[3] == 1 && p.x_strides[2] == p.w && p.x_strides[1] != 1; }

bool has_border(const Conv2dProblem& p) { return p.pad_top | p.pad_bottom | p.pad_left | p.pad_right; }

// Depthwise with a multiplier: each input channel is written that often, so that lanes stay output channels.
int64_t repeat(const Conv2dProblem& p) { return depthwise(p) ? p.oc / p.c : 1; }

bool needs_image(const Conv2dProblem& p) {
  if (p.x_padded && repeat(p) == 1) return false;
  return p.x_type != DType::s8 || has_border(p) || !is_packed_nhwc(p) || repeat(p) > 1 ||
         depthwise(p);  // reads on behind the last tap
}

// Whether bytes behind the image may be read.
bool has_slack(const Conv2dProblem& p) { return needs_image(p) || p.x_padded; }

// How the gemm path reads the image: `together` pieces of K are whole kernel rows, else single taps.
struct Reading {
  bool in_place, together;
  int64_t channels;          // of one of the layout's groups
};

int8_t wanted_mask(const Kernels& k) { return k.x_offset ? -128 : 0; }

// In place where the kernel's pieces allow it. A kernel that wants offset bytes needs them so, or an image written so.
Reading reading(const Conv2dProblem& p, const Kernels& k) {
  const PackedLayout layout = weight_layout(p.oc, p.c / p.groups, p.kh, p.kw, p.groups);
  Reading r;
  r.together = layout.groups == 1 && p.dilation_w == 1;
  r.channels = p.c / layout.groups;
  const int64_t piece = r.together ? p.kw * r.channels : r.channels;
  const bool padded = piece % k.piece != 0;  // a piece reads on into the next pixels, against weights of zero
  const bool pieces_fit = !padded || (k.piece == 4 && r.together && has_slack(p));
  const bool lines_fit = 5 * p.ow() >= 4 * round_up(p.ow(), k.piece_rows);
  const bool rows_fit = k.piece_rows == 1 || has_slack(p);  // its last tile reads rows behind the image
  r.in_place = !depthwise(p) && pieces_fit && lines_fit && rows_fit && (p.x_mask == wanted_mask(k) || needs_image(p));
  return r;
}

// What image bytes are XORed with: -128 where the kernel reads them in place and wants them offset.
int8_t image_mask(const Conv2dProblem& p, const Kernels& k) { return reading(p, k).in_place ? wanted_mask(k) : 0; }

// Bytes behind the image that may be read.
int64_t slack(const Conv2dProblem& p, const Kernels& k) {
  const int64_t rows = (k.piece_rows - 1) * p.stride_w;
  const int64_t windows = DepthwiseShape::kReadOn * std::max<int64_t>(p.stride_w, 2) + (p.kw + 4) * p.dilation_w;
  return 64 + (depthwise(p) ? windows * repeat(p) : rows) * p.c;
}

const char* pixel(const Conv2dProblem& p, int64_t image, int64_t h, int64_t w) {
  return static_cast<const char*>(p.x) +
         (image * p.x_strides[0] + h * p.x_strides[2] + w * p.x_strides[3]) * size_of(p.x_type);
}

// ---- 1. dynamic scales

// Calls body(values, count) for runs of neighbouring values that together are the image, as long as its strides allow.
template <class Body>
void for_runs(const Conv2dProblem& p, int64_t image, Body body) {
  const int64_t item = size_of(p.x_type), *stride = p.x_strides;
  const bool pixels_together = stride[1] == 1 && stride[3] == p.c;
  if ((pixels_together && stride[2] == p.w * p.c) || (is_planar(p) && stride[1] == p.h * p.w))
    return body(pixel(p, image, 0, 0), p.h * p.w * p.c);
  for (int64_t h = 0; h < p.h; ++h) {
    if (pixels_together) {
      body(pixel(p, image, h, 0), p.w * p.c);
    } else if (stride[3] == 1) {
      for (int64_t c = 0; c < p.c; ++c) body(pixel(p, image, h, 0) + c * stride[1] * item, p.w);
    } else {
      const int64_t run = stride[1] == 1 ? p.c : 1;
      for (int64_t w = 0; w < p.w; ++w)
        for (int64_t c = 0; c < p.c; c += run) body(pixel(p, image, h, w) + c * stride[1] * item, run);
    }
  }
}

void find_scales(const Conv2dProblem& p, const Kernels& k, const Parallel& parallel, float* scale, int32_t* zero) {
  parallel(p.batch, [&](int64_t image) {
    Extremes ends{0.0f, 0.0f};
    for_runs(p, image, [&](const void* values, int64_t count) {
      const Extremes e = k.extremes(values, p.x_type, count);
      ends.lo = std::min(ends.lo, e.lo);
      ends.hi = std::max(ends.hi, e.hi);
    });
    const ScaleZero sz = dynamic_scale(ends.lo, ends.hi, p.range == Range::dynamic_symmetric);
    scale[image] = sz.scale;
    zero[image] = sz.zero;
  });
}

// ---- 2. the int8 image with its border

// One row of pixels from anywhere, value by value: for strides that the torch front never hands on.
void quantize_strided_row(const Conv2dProblem& p, const Kernels& k, int64_t image, int64_t h, float inv_scale,
                          int32_t zero, bool flip, int8_t* out) {
  for (int64_t w = 0; w < p.w; ++w)
    for (int64_t c = 0; c < p.c; ++c)
      k.quantize(pixel(p, image, h, w) + c * p.x_strides[1] * size_of(p.x_type), p.x_type, 1, inv_scale, zero, flip,
                 out + w * p.c + c);
}

// Rows [h, h + rows) of an image as int8 pixels, `row_stride` bytes apart.
void quantize_rows(const Conv2dProblem& p, const Kernels& k, int64_t image, int64_t h, int64_t rows, const Scales& s,
                   bool flip, int8_t* out, int64_t row_stride) {
  const float inv_scale = 1.0f / s.scale[image / s.images_per_scale];
  const int32_t zero = s.zero[image / s.images_per_scale];
  if (is_planar(p))
    return k.interleave({pixel(p, image, h, 0), p.x_type, p.x_strides[1], rows, p.w, p.c, inv_scale, zero, flip, out, row_stride});
  for (int64_t r = 0; r < rows; ++r, out += row_stride) {
    if (p.x_strides[1] == 1 && p.x_strides[3] == p.c)
      k.quantize(pixel(p, image, h + r, 0), p.x_type, p.w * p.c, inv_scale, zero, flip, out);
    else if (p.x_strides[1] == 1)
      for (int64_t w = 0; w < p.w; ++w)
        k.quantize(pixel(p, image, h + r, w), p.x_type, p.c, inv_scale, zero, flip, out + w * p.c);
    else
      quantize_strided_row(p, k, image, h + r, inv_scale, zero, flip, out);
  }
}

void repeat_channels(const int8_t* row, int64_t count, int64_t times, int8_t* out) {
  if (times == 2) {  // the common multiplier, as the compiler's vectors
    for (int64_t i = 0; i < count; ++i) out[2 * i] = out[2 * i + 1] = row[i];
    return;
  }
  for (int64_t i = 0; i < count; ++i) std::fill_n(out + i * times, times, row[i]);
}

// The sides of a padded row, from its interior or the zero point.
void write_sides(const Conv2dProblem& p, int64_t c, int8_t zero, int8_t* inside) {
  const auto write = [&](int64_t w) {
    const int64_t from = source_index(w, p.w, p.pad_mode);
    if (from < 0) std::memset(inside + w * c, zero, size_t(c));
    else std::memcpy(inside + w * c, inside + from * c, size_t(c));
  };
  for (int64_t w = -p.pad_left; w < 0; ++w) write(w);
  for (int64_t w = p.w; w < p.w + p.pad_right; ++w) write(w);
}

// A share of the padded rows of all images: interior rows in runs, rows of the border one by one.
void write_image_rows(const Conv2dProblem& p, const Kernels& k, const Scales& s, Share share, int8_t* line, int8_t* out) {
  const int64_t times = repeat(p), c = p.c * times, row_bytes = p.padded_w() * c;
  const int8_t mask = image_mask(p, k);
  const bool flip = mask != p.x_mask;  // floats: x_mask is 0
  for (int64_t i = share.begin, run; i < share.end; i += run) {
    const int64_t image = i / p.padded_h(), y = i % p.padded_h() - p.pad_top;
    const int64_t h = source_index(y, p.h, p.pad_mode);
    const int8_t zero = int8_t(s.zero[image / s.images_per_scale]) ^ mask;
    int8_t* row = out + i * row_bytes;
    run = 1;
    if (h < 0) {
      std::memset(row, zero, size_t(row_bytes));
      continue;
    }
    int8_t* inside = row + p.pad_left * c;
    if (times > 1) {
      quantize_rows(p, k, image, h, 1, s, flip, line, 0);
      repeat_channels(line, p.w * p.c, times, inside);
    } else {
      if (y == h) run = std::min(p.h - h, share.end - i);
      quantize_rows(p, k, image, h, run, s, flip, inside, row_bytes);
    }
    for (int64_t r = 0; r < run; ++r) write_sides(p, c, zero, inside + r * row_bytes);
  }
}

// ---- 3. output pixels as rows

void fill_scales(const Scales& s, const Kernels& k, int64_t image, int64_t first, int64_t count,
                 const PackedRows& out) {
  std::fill_n(out.scale + first, count, s.scale[image / s.images_per_scale]);
  std::fill_n(out.offset + first, count, s.zero[image / s.images_per_scale] + k.x_offset);
}

// The first byte of a group's window under an output pixel.
const int8_t* window(const Conv2dProblem& p, const Image& x, int64_t image, int64_t y, int64_t column, int64_t channel) {
  return x.data + image * x.image + y * p.stride_h * x.row + column * p.stride_w * x.pixel + channel;
}

// Whole lines of output pixels, in place.
void read_pixels(const Conv2dProblem& p, const Image& x, const Scales& s, const GemmPlan& plan, const Reading& how,
                 const BlockPosition& at, const PackedRows& out, GemmBlock& block) {
  const int64_t oh = p.oh(), ow = p.ow(), image = at.m0 / (oh * ow), y = at.m0 / ow % oh;
  block.a = window(p, x, image, y, 0, at.group * how.channels);
  block.lda = p.stride_w * x.pixel;
  block.lines = at.rows / ow;
  block.line_stride = p.stride_h * x.row;
  block.piece_rows = p.kh;
  block.piece_row_stride = p.dilation_h * x.row;
  block.piece_columns = how.together ? 1 : p.kw;
  block.piece_column_stride = p.dilation_w * x.pixel;
  block.k4 = ceil_div(how.together ? p.kw * how.channels : how.channels, 4);
  block.rows = ow;
  block.one_scale = true;
  fill_scales(s, *plan.kernels, image, 0, at.rows, out);
}

// K values of a block of output pixels: KH*KW pieces of a group's channels, neighbouring taps in one piece.
void pack_pixels(const Conv2dProblem& p, const Image& x, const Scales& s, const GemmPlan& plan, const Reading& how,
                 const BlockPosition& at, const PackedRows& out, GemmBlock& block) {
  const int64_t oh = p.oh(), ow = p.ow();
  GatherRun run;
  run.pixel_stride = p.stride_w * x.pixel;
  run.row_stride = p.dilation_h * x.row;
  run.column_stride = p.dilation_w * x.pixel;
  run.rows = p.kh;
  run.columns = how.together ? 1 : p.kw;
  run.piece = how.together ? p.kw * how.channels : how.channels;
  run.row_pitch = kernel_row(how.channels, p.kw);
  run.flip = wanted_mask(*plan.kernels) != x.mask;
  run.slack = x.slack;
  run.lda = plan.lda;
  for (int64_t r = 0; r < at.rows; r += run.pixels) {
    const int64_t m = at.m0 + r, image = m / (oh * ow), y = m / ow % oh, column = m % ow;
    run.pixels = std::min(at.rows - r, ow - column);
    run.x = window(p, x, image, y, column, at.group * how.channels);
    run.a = out.a + r * plan.lda;
    plan.kernels->gather(run);
    fill_scales(s, *plan.kernels, image, r, run.pixels, out);
  }
  read_packed(plan, out, at.rows, block);
  block.one_scale = at.m0 / (oh * ow) / s.images_per_scale == (at.m0 + at.rows - 1) / (oh * ow) / s.images_per_scale;
}

// A staged block [rows][stride] of outputs from channel `first` on, to its planes.
void scatter(const Conv2dProblem& p, const Kernels& k, int64_t m0, int64_t rows, int64_t first, int64_t channels,
             const char* block, int64_t stride) {
  const int64_t pixels = p.oh() * p.ow(), item = size_of(p.epilogue.out_type);
  for (int64_t r = 0, run; r < rows; r += run) {
    const int64_t image = (m0 + r) / pixels, begin = (m0 + r) % pixels;
    run = std::min(rows - r, pixels - begin);
    char* y = static_cast<char*>(p.y) + ((image * p.oc + first) * pixels + begin) * item;
    k.deinterleave({block + r * stride * item, stride, item, run, channels, y, pixels});
  }
}

GemmPlan plan_pixels(const Conv2dProblem& p, const Kernels& k, int threads) {
  const PackedLayout layout = weight_layout(p.oc, p.c / p.groups, p.kh, p.kw, p.groups);
  const int64_t pixels = p.oh() * p.ow(), c_bytes = layout.n * size_of(p.epilogue.out_type);
  const int64_t parts = p.y_border ? p.batch : 1;  // lines of y have one gap, images another
  if (!reading(p, k).in_place) return plan_gemm({parts, p.batch * pixels / parts, k.piece_rows, layout.k_padded(), c_bytes}, layout, k, threads);
  const int64_t line_bytes = std::min(p.stride_h, p.dilation_h * p.kh) * p.padded_w() * p.c, unit = std::max<int64_t>(p.ow(), 1);
  return plan_gemm({p.batch, pixels, unit, ceil_div(line_bytes, unit), c_bytes}, layout, k, threads);
}

// A line of all images' outputs, NHWC.
char* line_of(const Conv2dProblem& p, int64_t line) {
  return static_cast<char*>(p.y) + (line / p.oh() * p.y_image() + line % p.oh() * p.y_row()) * size_of(p.epilogue.out_type);
}

int64_t staged_item(const Conv2dProblem& p) { return p.y_nhwc ? 0 : size_of(p.epilogue.out_type); }

void gemm_path(const Conv2dProblem& p, const Image& x, const Scales& s, Isa isa, const Parallel& parallel, void* memory) {
  const Kernels& kernels = kernels_of(isa);
  const GemmPlan plan = plan_pixels(p, kernels, parallel.threads);
  const Reading how = reading(p, kernels);
  const int64_t item = size_of(p.epilogue.out_type), group_channels = plan.layout.n;
  gemm_blocks(
      plan, p.weight, p.epilogue, staged_item(p), parallel, memory,
      [&](const BlockPosition& at, const PackedRows& out, GemmBlock& block) {
        (how.in_place ? read_pixels : pack_pixels)(p, x, s, plan, how, at, out, block);
      },
      [&](const BlockPosition& at, const PackedRows& rows) -> Destination {
        if (!p.y_nhwc) return {rows.c, plan.block_cols};
        const int64_t column = at.m0 % p.ow();
        char* y = line_of(p, at.m0 / p.ow()) + (column * p.oc + at.group * group_channels + at.n0) * item;
        return {y, p.oc, 2 * p.y_border * p.oc, p.ow(), column};
      },
      [&](const BlockPosition& at, const PackedRows& rows) {
        if (!p.y_nhwc)
          scatter(p, *plan.kernels, at.m0, at.rows, at.group * group_channels + at.n0, at.cols, rows.c, plan.block_cols);
      });
}

constexpr int64_t kStripBytes = 128 * 1024;  // of outputs staged in cache before they become planes

DepthwiseBlock depthwise_block(const Conv2dProblem& p, const Image& x) {
  const PackedLayout layout = weight_layout(p.oc, 1, p.kh, p.kw, p.groups);
  DepthwiseBlock b{};
  b.x_mask = x.mask;
  b.column_stride = x.pixel;
  b.row_stride = x.row;
  b.stride_h = p.stride_h;
  b.stride_w = p.stride_w;
  b.dilation_h = p.dilation_h;
  b.dilation_w = p.dilation_w;
  b.weight = p.weight;
  b.panel_bytes = layout.panel_bytes();
  b.kh = p.kh;
  b.kw = p.kw;
  b.channels = p.oc;
  b.pixels = p.ow();
  b.y_row = p.y_row();
  return b;
}

int64_t depthwise_bytes(const Conv2dProblem& p) {
  return DepthwiseMemory(DepthwiseShape(depthwise_block(p, {})), p.kh, nullptr).bytes;
}

// Lines that are staged together; 0 where outputs go to their place at once.
int64_t staged_lines(const Conv2dProblem& p) {
  if (p.y_nhwc) return 0;
  return std::max<int64_t>(1, kStripBytes / std::max<int64_t>(1, p.ow() * p.oc * size_of(p.epilogue.out_type)));
}

int64_t staged_bytes(const Conv2dProblem& p) {
  return round_up(staged_lines(p) * p.ow() * p.oc * size_of(p.epilogue.out_type), 64);
}

void depthwise_path(const Conv2dProblem& p, const Image& x, const Scales& s, Isa isa, const Parallel& parallel,
                    void* memory) {
  const PackedLayout layout = weight_layout(p.oc, 1, p.kh, p.kw, p.groups);
  const Kernels& kernels = kernels_of(isa);
  Workspace w(memory);
  Epilogue epilogue = to_whole_panels(w, p.epilogue, layout);
  epilogue.w_sum = layout.sums(p.weight, 0);
  const int64_t oh = p.oh(), ow = p.ow(), lines = p.batch * oh;
  const int workers = std::min(workers_for(lines * ow * p.oc * p.kh * p.kw / 4, kElementsPerThread, parallel.threads), int(std::max<int64_t>(lines, 1)));
  char* scratch = w.take<char>(workers * depthwise_bytes(p));
  char* staged = w.take<char>(workers * staged_bytes(p));
  const int64_t strip = staged_lines(p) ? staged_lines(p) : lines;
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(lines, workers, worker);
    for (int64_t line = mine.begin, next; line < mine.end; line = next) {
      const int64_t image = line / oh, y = line % oh;
      next = std::min({mine.end, line + strip, (image + 1) * oh});
      DepthwiseBlock block = depthwise_block(p, x);
      block.x = window(p, x, image, y, 0, 0);
      block.lines = next - line;
      block.m0 = line * ow;
      block.x_scale = s.scale[image / s.images_per_scale];
      block.x_zero = s.zero[image / s.images_per_scale];
      char* own = staged + worker * staged_bytes(p);
      block.y = p.y_nhwc ? line_of(p, line) : own;
      block.epilogue = &epilogue;
      block.memory = scratch + worker * depthwise_bytes(p);
      kernels.depthwise(block);
      if (!p.y_nhwc) scatter(p, kernels, line * ow, block.lines * ow, 0, p.oc, own, p.oc);
    }
  });
}

// ---- 4. the border of y

// In memory it is one piece before an image's first line, one between two lines, one behind the last.
void write_border(const Conv2dProblem& p, const Parallel& parallel) {
  const int64_t oh = p.oh(), side = p.y_border * p.oc, end = p.y_border * p.y_row() + side;
  const int8_t zero = int8_t(p.epilogue.out_zero) ^ p.epilogue.out_mask;
  const int workers = workers_for(p.batch * (2 * end + oh * 2 * side), kElementsPerThread, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    const Share mine = share(p.batch * (oh + 1), workers, worker);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t image = i / (oh + 1), line = i % (oh + 1);
      int8_t* y = static_cast<int8_t*>(p.y) + image * p.y_image();
      if (line == 0) std::memset(y - end, zero, size_t(end));
      else std::memset(y + line * p.y_row() - 2 * side, zero, size_t(line == oh ? end : 2 * side));
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

Memory take_memory(const Conv2dProblem& p, const Kernels& k, int threads, void* base) {
  Workspace w(base);
  Memory m;
  if (p.range != Range::given) {
    m.scale = w.take<float>(p.batch);
    m.zero = w.take<int32_t>(p.batch);
  }
  if (needs_image(p)) {
    m.image = w.take<int8_t>(p.batch * p.padded_h() * p.padded_w() * p.c * repeat(p) + slack(p, k));
    if (repeat(p) > 1) m.lines = w.take<int8_t>(std::clamp(threads, 1, kMaxThreads) * round_up(p.w * p.c, 64));
  }
  m.before_rest = w.used();
  m.rest = w.take<char>(0);
  return m;
}

// Images taken through all steps together.
int64_t images_at_once(const Conv2dProblem& p) {
  if (!needs_image(p)) return std::max<int64_t>(p.batch, 1);
  const int64_t bytes = std::max<int64_t>(1, p.padded_h() * p.padded_w() * p.c * repeat(p));
  return std::clamp<int64_t>(kImageBytes / bytes, 1, std::max<int64_t>(p.batch, 1));
}

// Images [first, first + count) as a problem of their own.
Conv2dProblem slice(const Conv2dProblem& p, int64_t first, int64_t count) {
  Conv2dProblem part = p;
  const int64_t pixels = p.oh() * p.ow(), rows = first * pixels;
  part.batch = count;
  part.x = pixel(p, first, 0, 0);
  part.y = static_cast<char*>(p.y) + first * p.y_image() * size_of(p.epilogue.out_type);
  Epilogue& e = part.epilogue;
  if (e.residual) e.residual = static_cast<const char*>(e.residual) + rows * e.residual_stride * size_of(e.residual_type);
  if (p.range == Range::given && e.rows_per_scale == pixels) {
    e.x_scale += first;
    e.x_zero += first;
  }
  return part;
}

int64_t images_workspace(const Conv2dProblem& p, Isa isa, int threads) {
  const int64_t before = take_memory(p, kernels_of(isa), threads, nullptr).before_rest;
  if (!depthwise(p))
    return before + blocks_workspace(plan_pixels(p, kernels_of(isa), threads), p.epilogue, staged_item(p));
  Workspace w(nullptr);
  to_whole_panels(w, p.epilogue, weight_layout(p.oc, 1, p.kh, p.kw, p.groups));
  return before + w.used() + std::clamp(threads, 1, kMaxThreads) * (depthwise_bytes(p) + staged_bytes(p));
}

void convolve_images(const Conv2dProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const Kernels& kernels = kernels_of(isa);
  const Memory memory = take_memory(p, kernels, parallel.threads, workspace);
  const bool per_image = p.epilogue.rows_per_scale == p.oh() * p.ow();
  Scales scales{p.epilogue.x_scale, p.epilogue.x_zero, per_image ? 1 : p.batch};
  if (p.range != Range::given) {
    find_scales(p, kernels, parallel, memory.scale, memory.zero);
    scales = {memory.scale, memory.zero, 1};
  }
  const int64_t inside = p.x_padded ? p.pad_top * p.x_strides[2] + p.pad_left * p.x_strides[3] : 0;
  Image x{static_cast<const int8_t*>(p.x) - inside, p.x_strides[0], p.x_strides[2], p.c, p.x_padded, p.x_mask};
  if (needs_image(p)) {
    const int64_t lines = p.batch * p.padded_h();
    const int workers = workers_for(p.batch * p.h * p.w * p.c, kElementsPerThread, parallel.threads);
    parallel(workers, [&](int64_t worker) {
      int8_t* line = memory.lines ? memory.lines + worker * round_up(p.w * p.c, 64) : nullptr;
      write_image_rows(p, kernels, scales, share(lines, workers, worker), line, memory.image);
    });
    const int64_t c = p.c * repeat(p), row = p.padded_w() * c;
    x = {memory.image, p.padded_h() * row, row, c, true, image_mask(p, kernels)};
  }
  if (depthwise(p)) depthwise_path(p, x, scales, isa, parallel, memory.rest);
  else gemm_path(p, x, scales, isa, parallel, memory.rest);
  if (p.y_border) write_border(p, parallel);
}

// Images for each worker alone, which needs no barrier between the steps and finds its image in its own L2.
int64_t images_each(const Conv2dProblem& p, int threads) {
  const int64_t work = p.batch * p.oh() * p.ow() * p.oc * p.kh * p.kw * (p.c / p.groups);
  return threads > 1 && threads <= kMaxThreads && work >= threads * kWorkPerImage ? p.batch / threads : 0;
}

int64_t slices_workspace(const Conv2dProblem& p, Isa isa, int threads) {
  return images_workspace(slice(p, 0, images_at_once(p)), isa, threads);
}

void convolve_slices(const Conv2dProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const int64_t at_once = images_at_once(p);
  for (int64_t first = 0; first < p.batch; first += at_once)
    convolve_images(slice(p, first, std::min(at_once, p.batch - first)), isa, parallel, workspace);
}

}  // namespace

int64_t conv2d_read_on(const Conv2dProblem& p, Isa isa) { return slack(p, kernels_of(isa)); }

int64_t conv2d_workspace(const Conv2dProblem& p, Isa isa, int threads) {
  const int64_t each = images_each(p, threads), rest = p.batch - each * threads;
  const int64_t alone = each ? threads * slices_workspace(slice(p, 0, each), isa, 1) : 0;
  return std::max(alone, rest || !each ? slices_workspace(slice(p, 0, rest), isa, threads) : 0);
}

void conv2d(const Conv2dProblem& p, Isa isa, const Parallel& parallel, void* workspace) {
  const int64_t each = images_each(p, parallel.threads), together = each * parallel.threads;
  if (each) {
    const int64_t bytes = slices_workspace(slice(p, 0, each), isa, 1);
    parallel(parallel.threads, [&](int64_t i) {
      convolve_slices(slice(p, i * each, each), isa, Parallel{}, static_cast<char*>(workspace) + i * bytes);
    });
  }
  convolve_slices(slice(p, together, p.batch - together), isa, parallel, workspace);
}

}  // namespace qk
