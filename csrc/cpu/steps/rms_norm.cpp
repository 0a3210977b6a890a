// Root mean square normalization of every row: layer normalization whose mean and bias are 0.
#include "norm.h"

namespace qk {
namespace {

QK_RECORD(Payload, QK_NORM);

const char* check(const StepCheck& c) { return check_norm(c, c.payload<Payload>()); }

LayerNormProblem problem(const StepCall& call) {
  LayerNormProblem p = row_norm(call, call.payload<Payload>());
  p.centered = false;
  return p;
}

int64_t plan(const StepCall& call, int threads, void*) { return layer_norm_workspace(problem(call), threads); }
void run(const StepCall& call, const void*, const Parallel& parallel, void* workspace) { layer_norm(problem(call), call.isa, parallel, workspace); }

}  // namespace

const StepType rms_norm_step{.name = "rms_norm", .payload = kPayload<Payload>,
                             .check = check, .shape = same_sizes, .plan = plan, .run = run};

}  // namespace qk
