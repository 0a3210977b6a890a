// Layer normalization of float32 rows or tokens, to float32 or int8.
#include "../tokens.h"
#include "step.h"

namespace qk {
namespace {

#define QK_LAYER_NORM(F)                                                                     \
  F(Constant, weight, Constant()) F(Constant, bias, Constant())  /* f32, one a channel */    \
  F(float, epsilon, 0.0f) QK_OUTPUT(F)
QK_RECORD(Payload, QK_LAYER_NORM);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (c.x.type != DType::f32 || c.x.rank == 4 || c.x.channels < 1) return "it normalizes no float32 rows";
  if (c.y.rank != c.x.rank || c.y.channels != c.x.channels) return "its output has other sizes";
  const int64_t bytes = c.x.channels * int64_t(4);
  if (!c.holds(p.weight, bytes) || !c.holds(p.bias, bytes)) return "its weight or bias lies outside";
  if (!(p.epsilon >= 0.0f) || !std::isfinite(p.epsilon)) return "its epsilon is not finite and at least 0";
  return check_output(p);
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  LayerNormProblem p;
  p.rows = x.n * x.h * x.w, p.c = x.c;
  p.x = call.data_as<const float>(call.read(0));
  p.weight = call.constant<float>(s.weight);
  p.bias = call.constant<float>(s.bias);
  p.epsilon = s.epsilon;
  p.y = call.data(call.step.y);
  p.epilogue = output_of(call, s);
  layer_norm(p, call.isa, parallel);
}

}  // namespace

const StepType layer_norm_step{.name = "layer_norm", .payload = kPayload<Payload>,
                               .check = check, .shape = same_shape, .run = run};

}  // namespace qk
