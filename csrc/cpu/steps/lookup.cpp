// Any function of int8 to int8, by a table of 256.
#include "../move.h"
#include "step.h"

namespace qk {
namespace {

#define QK_LOOKUP(F) F(Constant, table, Constant())  /* int8 [256], from the value of -128 on */
QK_RECORD(Payload, QK_LOOKUP);

const char* check(const StepCheck& c) {
  if (c.x.type != DType::s8 || c.y.type != DType::s8) return "it looks up what is no int8";
  if (c.x.rank != c.y.rank || c.x.channels != c.y.channels || c.x.planar || c.y.planar) return "its output has other sizes";
  return c.holds(c.payload<Payload>().table, 256) ? nullptr : "its table lies outside";
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) {
  const ProgramShape& x = call.x_shape();
  const int8_t* table = call.constant<int8_t>(call.payload<Payload>().table);
  lookup({x.n * x.h * x.w * x.c, table, call.mask, call.data_as<const int8_t>(call.read(0)), call.data_as<int8_t>(call.step.y)},
         call.isa, parallel);
}

}  // namespace

const StepType lookup_step{.name = "lookup", .payload = kPayload<Payload>,
                           .check = check, .shape = same_shape, .run = run};

}  // namespace qk
