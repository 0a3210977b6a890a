// Sums along an axis up to each of its places, in order: how many tokens there are until here, say.
#include "scan.h"

namespace qk {
namespace {

std::string shape(const StepCall& call, ProgramShape& y) {
  const std::string why = check_length(call);
  return why.empty() ? same_sizes(call, y) : why;
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) { cumsum(scan_of(call), parallel); }

}  // namespace

const StepType cumsum_step{.name = "cumsum", .payload = kPayload<ScanPayload>, .check = check_scan, .shape = shape, .run = run};

}  // namespace qk
