// Where along an axis, which becomes 1, the largest number stands.
#include "operand.h"
#include "scan.h"

namespace qk {
namespace {

#define QK_ARGMAX(F) F(int32_t, axis, 1)  /* in memory: 1 h, 2 w, 3 c */
QK_RECORD(Payload, QK_ARGMAX);

const char* check(const StepCheck& c) { return check_scan(c, c.payload<Payload>()); }

std::string shape(const StepCall& call, ProgramShape& y) {
  const int32_t axis = call.payload<Payload>().axis;
  if (std::string why = check_length(call, axis); !why.empty()) return why;
  y = call.x_shape();
  if (y.size(axis) < 1) return "it looks for the largest of no numbers";
  (axis == 1 ? y.h : axis == 2 ? y.w : y.c) = 1;
  return fitting(call, y);
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) { argmax(scan_of(call, call.payload<Payload>().axis), parallel); }

}  // namespace

const StepType argmax_step{.name = "argmax", .payload = kPayload<Payload>, .check = check, .shape = shape, .run = run};

}  // namespace qk
