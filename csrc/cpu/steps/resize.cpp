// An image of another size as torch makes it: the nearest pixel, or a blend of four. An int8 image keeps its scale and zero point.
#include "resize.h"

#include <cmath>

namespace qk {
namespace {

#define QK_RESIZE(F)                                                                         \
  F(double, scale_h, 0.0) F(double, scale_w, 0.0)  /* of y's sizes to x's; 0: their ratio */ \
  F(int32_t, out_h, 0) F(int32_t, out_w, 0)        /* of y; 0: x's size times the scale */   \
  F(ResizeMode, mode, ResizeMode::nearest)                                                   \
  F(uint8_t, align_corners, 0)                     /* of bilinear */
QK_RECORD(Payload, QK_RESIZE);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (!are_images(c) || c.y.channels != c.x.channels) return "it reads or writes no image";
  if (!within(int(p.mode), 0, 2) || p.align_corners > (p.mode == ResizeMode::bilinear)) return "it resizes in no known mode";
  for (double scale : {p.scale_h, p.scale_w})
    if (!(scale >= 0.0) || !std::isfinite(scale)) return "its scale is not finite and at least 0";
  if (p.out_h < 0 || p.out_w < 0 || (p.out_h == 0 && p.scale_h == 0.0) || (p.out_w == 0 && p.scale_w == 0.0)) return "its output has no size";
  return nullptr;
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const Payload& p = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  const double h = p.out_h ? p.out_h : std::floor(double(x.h) * p.scale_h), w = p.out_w ? p.out_w : std::floor(double(x.w) * p.scale_w);
  if (h < 1 || w < 1) return sentence("an image of ", x.h, "x", x.w, " becomes an empty one");
  if (h > double(kMaxExtent) || w > double(kMaxExtent)) return too_large(call);
  y.h = int64_t(h), y.w = int64_t(w);
  return {};
}

void run(const StepCall& call, const void*, const Parallel& parallel, void* workspace) {
  const Payload& p = call.payload<Payload>();
  const ProgramShape &x = call.x_shape(), &y = call.y_shape();
  run_resize(call, p.mode == ResizeMode::bilinear, parallel, workspace, [&](Tap* rows, Tap* columns) {
    set_taps({p.mode, p.align_corners != 0, p.scale_h, x.h, y.h}, rows);
    set_taps({p.mode, p.align_corners != 0, p.scale_w, x.w, y.w}, columns);
  });
}

}  // namespace

const StepType resize_step{.name = "resize", .payload = kPayload<Payload>, .check = check, .shape = shape, .plan = taps_bytes, .run = run};

}  // namespace qk
