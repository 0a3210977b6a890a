// Sums along an axis up to each of its places, in order: how many tokens there are until here, say.
#include "operand.h"
#include "scan.h"

namespace qk {
namespace {

#define QK_CUMSUM(F) F(int32_t, axis, 1)  /* in memory: 1 h, 2 w, 3 c */
QK_RECORD(Payload, QK_CUMSUM);

const char* check(const StepCheck& c) { return check_scan(c, c.payload<Payload>()); }

std::string shape(const StepCall& call, ProgramShape& y) {
  if (std::string why = check_length(call, call.payload<Payload>().axis); !why.empty()) return why;
  return same_sizes(call, y);
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) { cumsum(scan_of(call, call.payload<Payload>().axis), parallel); }

}  // namespace

const StepType cumsum_step{.name = "cumsum", .payload = kPayload<Payload>, .check = check, .shape = shape, .run = run};

}  // namespace qk
