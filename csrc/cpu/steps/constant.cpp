// The same values for every n: an array that belongs to the program, as y or as a part of a join.
#include <cstring>

#include "../move.h"
#include "join.h"

namespace qk {
namespace {

#define QK_CONSTANT(F)                                                                       \
  F(Constant, data, Constant())  /* [h, w, c] in y's memory, of y's type */                  \
  F(int32_t, h, 1) F(int32_t, w, 1) F(int32_t, c, 1)                                         \
  QK_JOIN(F)
QK_RECORD(Payload, QK_CONSTANT);

int64_t bytes_of(const ProgramValue& y, const Payload& p) { return int64_t(p.h) * p.w * p.c * size_of(y.type); }

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (p.h < 1 || p.w < 1 || p.c < 1 || double(p.h) * p.w * p.c > kMaxElements) return "its array is empty or too large";
  if ((p.h > 1 && !has_axis(c.y, 1)) || (p.w > 1 && !has_axis(c.y, 2))) return "its array has an axis that its output does not have";
  return c.holds(p.data, bytes_of(c.y, p)) ? check_join(c, p) : "its array lies outside";
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const Payload& p = call.payload<Payload>();
  return join_shape(call, p, {call.x_shape().n, p.h, p.w, p.c}, y);
}

int64_t plan(const StepCall& call, int, void*) {
  return call.mask_of(call.y()) ? bytes_of(call.y(), call.payload<Payload>()) : 0;
}

// The array as y holds it: int8 under the mask.
const void* masked(const StepCall& call, const Payload& p, void* workspace) {
  const int8_t* data = call.constant<int8_t>(p.data);
  const int8_t mask = call.mask_of(call.y());
  if (!mask) return data;
  int8_t* to = static_cast<int8_t*>(workspace);
  for (int64_t i = 0, bytes = bytes_of(call.y(), p); i < bytes; ++i) to[i] = data[i] ^ mask;
  return to;
}

void run(const StepCall& call, const void*, const Parallel& parallel, void* workspace) {
  const Payload& p = call.payload<Payload>();
  MoveProblem m;
  m.item = size_of(call.y().type), m.count = 4;
  int64_t before;
  const Box sizes{call.y_shape().n, p.h, p.w, p.c}, to = strides_of(call, p, before);
  const int64_t from[4] = {0, int64_t(p.w) * p.c, p.c, 1};
  for (size_t i = 0; i < 4; ++i) m.dims[i] = {sizes[i], from[i] * m.item, to[i] * m.item};
  m.x = masked(call, p, workspace), m.y = call.data_as<char>(call.step.y) + before * m.item;
  move(m, parallel);
}

}  // namespace

const StepType constant_step{.name = "constant", .payload = kPayload<Payload>, .joins = true, .reads_planes = true, .writes_planes = true,
                             .reads_integers = true, .check = check, .shape = shape, .plan = plan, .run = run};

}  // namespace qk
