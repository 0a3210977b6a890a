// [n, h, w, c] to [n, c, h, w], or to rows [n, c*h*w].
#include "../move.h"
#include "step.h"

namespace qk {
namespace {

#define QK_NO_FIELD(F)
QK_RECORD(Payload, QK_NO_FIELD);

const char* check(const StepCheck& c) {
  if (c.x.rank != 4 || c.x.channels < 1 || c.x.planar || c.x.type != c.y.type) return "it reads no image";
  const bool rows = c.y.rank == 2 && c.y.channels == 0, planes = c.y.rank == 4 && c.y.planar && c.y.channels == c.x.channels;
  return rows || planes ? nullptr : "its output is not planar";
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const ProgramShape& x = call.x_shape();
  y = call.y().rank == 2 ? ProgramShape{x.n, 1, 1, x.h * x.w * x.c} : x;
  return {};
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) {
  const ProgramShape& x = call.x_shape();
  to_planar({x.n, x.h * x.w, x.c, call.y().type, call.data(call.read(0)), call.data(call.step.y)}, parallel);
}

}  // namespace

const StepType planar_step{.name = "planar", .payload = kPayload<Payload>, .writes_planes = true,
                           .check = check, .shape = shape, .run = run};

}  // namespace qk
