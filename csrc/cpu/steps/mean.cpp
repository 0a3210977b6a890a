// The mean of an image's pixels: float32 [n, h, w, c] to [n, 1, 1, c].
#include "../pool.h"
#include "step.h"

namespace qk {
namespace {

#define QK_NO_FIELD(F)
QK_RECORD(Payload, QK_NO_FIELD);

const char* check(const StepCheck& c) {
  return are_images(c) && c.x.type == DType::f32 && c.y.channels == c.x.channels ? nullptr : "it averages no float image";
}

std::string shape(const StepCall&, ProgramShape&) { return {}; }

void run(const StepCall& call, const void*, const Parallel& parallel, void*) {
  const ProgramShape& x = call.x_shape();
  MeanProblem p;
  p.batch = x.n, p.h = x.h, p.w = x.w, p.c = x.c;
  p.x = call.data_as<const float>(call.read(0)), p.y = call.data_as<float>(call.step.y);
  call.strides(call.read(0), p.x_strides);
  mean(p, parallel);
}

}  // namespace

const StepType mean_step{.name = "mean", .payload = kPayload<Payload>,
                         .check = check, .shape = shape, .run = run};

}  // namespace qk
