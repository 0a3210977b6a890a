// What comes before and after a path: dynamic scales, x as int8 NHWC with its border written out (the zero point, or mirrored
// values), so that no path asks where an image ends; staged outputs to planes; y's border, where the step after wants one.
#include <algorithm>
#include <cstring>

#include "../core/epilogue.h"
#include "../core/padding.h"
#include "conv_steps.h"

namespace qk {
namespace {

// Planes whose rows follow each other: NCHW, or a batch slice of it.
bool is_planar(const Conv2dProblem& p) { return p.x_strides[3] == 1 && p.x_strides[2] == p.w && p.x_strides[1] != 1; }

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
void write_image_rows(const Conv2dProblem& p, const ConvPlan& plan, const Scales& s, Share share, int8_t* line, int8_t* out) {
  const Kernels& k = *plan.kernels;
  const int64_t times = plan.repeat, c = p.c * times, row_bytes = plan.row;
  for (int64_t i = share.begin, run; i < share.end; i += run) {
    const int64_t image = i / p.padded_h(), y = i % p.padded_h() - p.pad_top;
    const int64_t h = source_index(y, p.h, p.pad_mode);
    const int8_t zero = int8_t(s.zero[image / s.images_per_scale]) ^ plan.mask;
    int8_t* row = out + i * row_bytes;
    run = 1;
    if (h < 0) {
      std::memset(row, zero, size_t(row_bytes));
      continue;
    }
    int8_t* inside = row + p.pad_left * c;
    if (times > 1) {
      quantize_rows(p, k, image, h, 1, s, plan.flip_written, line, 0);
      repeat_channels(line, p.w * p.c, times, inside);
    } else {
      if (y == h) run = std::min(p.h - h, share.end - i);
      quantize_rows(p, k, image, h, run, s, plan.flip_written, inside, row_bytes);
    }
    for (int64_t r = 0; r < run; ++r) write_sides(p, c, zero, inside + r * row_bytes);
  }
}

// Dynamic scales: one an image.
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

void write_image(const Conv2dProblem& p, const ConvPlan& plan, const Scales& s, const Parallel& parallel, int8_t* lines, int8_t* out) {
  const int64_t rows = p.batch * p.padded_h();
  const int workers = workers_for(p.batch * p.h * p.w * p.c, kElementsPerThread, parallel.threads);
  parallel(workers, [&](int64_t worker) {
    write_image_rows(p, plan, s, share(rows, workers, worker), lines + worker * round_up(p.w * p.c, 64), out);
  });
}

}  // namespace

Prepared prepare(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part, const Parallel& parallel, char* workspace) {
  Prepared x{{p.epilogue.x_scale, p.epilogue.x_zero, p.epilogue.rows_per_scale == p.oh() * p.ow() ? 1 : p.batch},
             {nullptr, plan.image, plan.row, p.c * plan.repeat}};
  if (p.range != Range::given) {
    float* scale = reinterpret_cast<float*>(workspace + part.scale);
    int32_t* zero = reinterpret_cast<int32_t*>(workspace + part.zero);
    find_scales(p, *plan.kernels, parallel, scale, zero);
    x.scales = {scale, zero, 1};
  }
  if (plan.writes_image) {
    int8_t* image = reinterpret_cast<int8_t*>(workspace + part.image);
    write_image(p, plan, x.scales, parallel, reinterpret_cast<int8_t*>(workspace + part.lines), image);
    x.image.data = image;
  } else {
    const int64_t border = p.x_padded ? p.pad_top * p.x_strides[2] + p.pad_left * p.x_strides[3] : 0;
    x.image.data = static_cast<const int8_t*>(p.x) - border;
  }
  return x;
}

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

// The border is, in memory, one piece before an image's first line, one between two lines, one behind the last.
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

}  // namespace qk
