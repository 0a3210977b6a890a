// One row of each sequence, which another value names: x [n, t, c] and [n] to [n, c].
#include "ids.h"
#include "operand.h"

namespace qk {
namespace {

#define QK_NO_FIELD(F)
QK_RECORD(Payload, QK_NO_FIELD);

const char* check(const StepCheck& c) {
  const int32_t v = c.step.reads[1];
  if (v < 0) return "it reads fewer values than its kind";
  const ProgramValue& at = c.program.values[v];
  if (at.type != DType::f32 || at.rank != 2 || at.channels != 1) return "its row numbers are no float32 [N, 1]";
  if (c.x.rank != 3 || c.x.channels < 1) return "it reads no tokens";
  return c.y.rank == 2 && c.y.type == c.x.type ? nullptr : "it writes no rows of what it reads";
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const ProgramShape& x = call.x_shape();
  y = {x.n, 1, 1, x.c};
  return fitting(call, y);
}

std::string check_rows(const StepCall& call) { return check_ids(call, 1, call.x_shape().h); }

void run(const StepCall& call, const void*, const Parallel&, void*) {
  const ProgramShape& x = call.x_shape();
  gather({x.n, x.h, x.c * size_of(call.x().type), ids_of(call, 1), call.data(call.read(0)), call.data(call.step.y)});
}

}  // namespace

const StepType gather_step{.name = "gather", .payload = kPayload<Payload>, .most_reads = 2,
                           .check = check, .shape = shape, .run = run, .check_values = check_rows, .checked_read = 1};

}  // namespace qk
