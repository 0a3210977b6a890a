// Maximum over windows of an image, int8 or float32.
#include "pool.h"

namespace qk {
namespace {

#define QK_MAX_POOL(F) F(int32_t, dilation_h, 1) F(int32_t, dilation_w, 1) QK_POOL(F)
QK_RECORD(Payload, QK_MAX_POOL);

Pool2dProblem window(const Payload& s) {
  Pool2dProblem p = window_of(s);
  p.dilation_h = s.dilation_h, p.dilation_w = s.dilation_w;
  return p;
}

const char* check(const StepCheck& c) {
  if (c.x.type != c.y.type) return "its output has another type";
  return check_pool(c, window(c.payload<Payload>()));
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const Payload& s = call.payload<Payload>();
  return pool_shape(call, window(s), s.ceil_mode, y);
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) { run_pool(call, window(call.payload<Payload>()), parallel); }

}  // namespace

const StepType max_pool_step{.name = "max_pool", .payload = kPayload<Payload>,
                             .check = check, .shape = shape, .run = run};

}  // namespace qk
