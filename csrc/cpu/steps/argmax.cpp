// The place of the largest number along an axis, which becomes 1.
#include "scan.h"

namespace qk {
namespace {

std::string shape(const StepCall& call, ProgramShape& y) {
  const int32_t axis = call.payload<ScanPayload>().axis;
  if (std::string why = check_length(call); !why.empty()) return why;
  y = call.x_shape();
  if (y.size(axis) < 1) return "it looks for the largest of no numbers";
  (axis == 1 ? y.h : axis == 2 ? y.w : y.c) = 1;
  return fitting(call, y);
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) { argmax(scan_of(call), parallel); }

}  // namespace

const StepType argmax_step{.name = "argmax", .payload = kPayload<ScanPayload>, .check = check_scan, .shape = shape, .run = run};

}  // namespace qk
