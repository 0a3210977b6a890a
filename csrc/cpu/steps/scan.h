// What steps share that go along one axis of a value, place by place.
#pragma once
#include "../reduce.h"
#include "join.h"
#include "operand.h"

namespace qk {

#define QK_SCAN(F) F(int32_t, axis, 1)  /* in memory: 1 h, 2 w, 3 c */
QK_RECORD(ScanPayload, QK_SCAN);

inline const char* check_scan(const StepCheck& c) {
  const int32_t axis = c.payload<ScanPayload>().axis;
  if (c.x.type != DType::f32 || c.y.type != DType::f32) return "it goes along float32 only";
  if (c.x.planar || c.y.planar) return "it goes along a value that is planar";
  return axis > 0 && has_axis(c.x, axis) ? nullptr : "it goes along an axis that its input does not have";
}

inline std::string check_length(const StepCall& call) {
  const int64_t length = call.x_shape().size(call.payload<ScanPayload>().axis);
  return length <= kMaxScanned ? std::string() : sentence("it goes along ", length, " places, more than ", kMaxScanned);
}

inline ScanProblem scan_of(const StepCall& call) {
  const int axis = call.payload<ScanPayload>().axis;
  const ProgramShape& x = call.x_shape();
  ScanProblem p;
  for (int i = 0; i < 4; ++i) (i < axis ? p.outer : i == axis ? p.count : p.inner) *= x.size(i);
  p.x = call.data_as<const float>(call.read(0)), p.y = call.data_as<float>(call.step.y);
  return p;
}

}  // namespace qk
