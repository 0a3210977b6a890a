// What steps share whose y is an image of other sizes, each row and column read where a tap says.
#pragma once
#include "../resize.h"
#include "step.h"

namespace qk {

inline int64_t taps_bytes(const StepCall& call, int, void*) { return (call.y_shape().h + call.y_shape().w) * int64_t(sizeof(Tap)); }

// Runs it on the taps that `set(rows, columns)` leaves in the workspace.
template <class Set>
void run_resize(const StepCall& call, bool blends, const Parallel& parallel, void* workspace, Set&& set) {
  const ProgramShape &x = call.x_shape(), &y = call.y_shape();
  Tap *rows = static_cast<Tap*>(workspace), *columns = rows + y.h;
  set(rows, columns);
  resize({x.n, x.h, x.w, x.c, y.h, y.w, blends, call.y().type, call.mask, rows, columns, call.data(call.read(0)), call.data(call.step.y)}, parallel);
}

}  // namespace qk
