// Layer normalization of every row.
#include "norm.h"

namespace qk {
namespace {

#define QK_LAYER_NORM(F) F(Constant, bias, Constant()) QK_NORM(F)  /* f32, one a channel */
QK_RECORD(Payload, QK_LAYER_NORM);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (const char* why = check_norm(c, p)) return why;
  return c.holds(p.bias, c.x.channels * int64_t(4)) ? nullptr : "its bias lies outside";
}

LayerNormProblem problem(const StepCall& call) {
  const Payload& s = call.payload<Payload>();
  LayerNormProblem p = row_norm(call, s);
  p.bias = call.constant<float>(s.bias);
  return p;
}

int64_t plan(const StepCall& call, int threads, void*) { return layer_norm_workspace(problem(call), threads); }
void run(const StepCall& call, const void*, const Parallel& parallel, void* workspace) { layer_norm(problem(call), call.isa, parallel, workspace); }

}  // namespace

const StepType layer_norm_step{.name = "layer_norm", .payload = kPayload<Payload>,
                               .check = check, .shape = same_sizes, .plan = plan, .run = run};

}  // namespace qk
