// Attention of float32 tokens [n, t, 3c], queries, keys and values side by side, to [n, t, c].
#include "../tokens.h"
#include "step.h"

namespace qk {
namespace {

#define QK_ATTENTION(F)                                                                      \
  F(int32_t, heads, 1)                                                                       \
  F(float, exponent, 1.0f)     /* log2(e) times the scale of the scores */                   \
  QK_OUTPUT(F)
QK_RECORD(Payload, QK_ATTENTION);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (c.x.type != DType::f32 || c.x.rank != 3 || c.y.rank != 3) return "it reads or writes no tokens";
  if (c.y.channels < 1 || c.x.channels != int64_t(3) * c.y.channels) return "its input is not three times as wide as its output";
  if (p.heads < 1 || c.y.channels % p.heads) return "its heads do not divide its channels";
  if (!(p.exponent > 0.0f) || !std::isfinite(p.exponent)) return "the factor of its scores is not finite and above 0";
  return check_output(p);
}

std::string shape(const StepCall& call, ProgramShape& y) {
  y.h = call.x_shape().h;
  return {};
}

AttentionProblem problem(const StepCall& call) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  AttentionProblem p;
  p.batch = x.n, p.tokens = x.h, p.heads = s.heads, p.width = x.c / 3 / s.heads;
  p.x = call.data_as<const float>(call.read(0));
  p.exponent = s.exponent;
  p.y = call.data(call.step.y);
  p.epilogue = output_of(call, s);
  return p;
}

int64_t plan(const StepCall& call, int threads, void*) { return attention_workspace(problem(call), threads); }

void run(const StepCall& call, const void*, const Parallel& parallel, void* workspace) { attention(problem(call), call.isa, parallel, workspace); }

double macs(const StepCall& call) {
  const ProgramShape& y = call.y_shape();
  return 2 * double(y.h) * double(y.h) * double(y.c);
}

}  // namespace

const StepType attention_step{.name = "attention", .payload = kPayload<Payload>,
                              .check = check, .shape = shape, .plan = plan, .run = run, .macs = macs};

}  // namespace qk
