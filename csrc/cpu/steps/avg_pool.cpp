// The mean over windows of an int8 image, of the same scale and zero point.
#include "pool.h"

namespace qk {
namespace {

#define QK_AVG_POOL(F)                                                                       \
  QK_POOL(F)                                                                                 \
  F(uint8_t, count_include_pad, 1)  /* padding counts, as real 0 */                          \
  F(int32_t, zero_point, 0)
QK_RECORD(Payload, QK_AVG_POOL);

Pool2dProblem window(const Payload& s) {
  Pool2dProblem p = window_of(s);
  p.average = true, p.count_include_pad = s.count_include_pad, p.x_zero = s.zero_point;
  return p;
}

const char* check(const StepCheck& c) {
  const Pool2dProblem p = window(c.payload<Payload>());
  if (const char* why = check_pool(c, p)) return why;
  if (c.x.type != DType::s8) return "it averages what is no int8";
  if (p.kh * p.kw > kMaxWindow) return "its window has too many values";
  return within(p.x_zero, -128, 127) ? nullptr : "its zero point is outside [-128, 127]";
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const Payload& s = call.payload<Payload>();
  return pool_shape(call, window(s), s.ceil_mode, y);
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) { run_pool(call, window(call.payload<Payload>()), parallel); }

}  // namespace

const StepType avg_pool_step{.name = "avg_pool", .payload = kPayload<Payload>,
                             .check = check, .shape = shape, .run = run};

}  // namespace qk
