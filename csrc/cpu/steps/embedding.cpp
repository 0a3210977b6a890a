// Rows of a table by their numbers: ids [n, t], of an input or computed, to [n, t, c].
#include "ids.h"

namespace qk {
namespace {

#define QK_EMBEDDING(F)                                                                      \
  F(Constant, table, Constant())  /* [rows, channels of y]: int8, or f32 where there is no scale */ \
  F(Constant, scale, Constant())  /* f32, one a row, or none */                              \
  F(int32_t, rows, 0) QK_OUTPUT(F)
QK_RECORD(Payload, QK_EMBEDDING);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  const bool computed = c.x.type == DType::f32 && c.x.rank == 3 && c.x.channels == 1;
  if (!computed && (c.x.type != DType::s64 || c.x.rank != 2)) return "it reads neither int64 [N, T] nor float32 [N, T, 1]";
  if (c.y.rank != 3 || c.y.channels < 1) return "it writes no tokens";
  const bool scaled = p.scale.at || p.scale.bytes;
  if (p.rows < 1 || !c.holds(p.table, int64_t(p.rows) * c.y.channels * (scaled ? 1 : 4))) return "its table is not of its sizes";
  if (scaled && !c.holds(p.scale, p.rows * int64_t(4))) return "its scales lie outside";
  if (scaled && !are_scales(c.at<float>(p.scale), p.rows)) return "a scale of its rows is not finite and above 0";
  return check_output(p);
}

std::string shape(const StepCall& call, ProgramShape& y) {
  y.h = call.x_shape().h * call.x_shape().c;
  return {};
}

int64_t id_count(const void* payload) { return static_cast<const Payload*>(payload)->rows; }

std::string check_rows(const StepCall& call) { return check_ids(call, 0, call.payload<Payload>().rows); }

EmbeddingProblem problem(const StepCall& call) {
  const Payload& s = call.payload<Payload>();
  EmbeddingProblem p;
  p.count = call.x_shape().count(), p.rows = s.rows, p.c = call.y().channels;
  p.ids = ids_of(call, 0);
  p.table = call.constant<char>(s.table), p.scale = call.constant<float>(s.scale);
  p.y = call.data(call.step.y), p.epilogue = output_of(call, s);
  return p;
}

int64_t plan(const StepCall& call, int threads, void*) { return embedding_workspace(problem(call), threads); }

void run(const StepCall& call, const void*, const Parallel& parallel, void* workspace) { embedding(problem(call), call.isa, parallel, workspace); }

}  // namespace

const StepType embedding_step{.name = "embedding", .payload = kPayload<Payload>, .reads_integers = true,
                              .check = check, .shape = shape, .plan = plan, .run = run, .id_count = id_count, .check_values = check_rows};

}  // namespace qk
