// What steps share that write a part of y along one of its axes, behind the parts before: joins of any values.
#pragma once
#include <array>

#include "step.h"

namespace qk {

#define QK_JOIN(F)                                                                           \
  F(int32_t, join_axis, -1)    /* of y in memory, along which parts follow each other; -1: all of y is written */ \
  F(int32_t, join_at, 0)       /* where this part begins there, which is where the one before has ended */ \
  F(int32_t, join_total, 0)    /* y's size there; 0: its channels */

// The four sizes of a value in the order of its memory.
using Box = std::array<int64_t, 4>;

inline Box box_of(const ProgramValue& v, const ProgramShape& s) { return v.planar ? Box{s.n, s.c, s.h, s.w} : Box{s.n, s.h, s.w, s.c}; }
// What an axis of memory is called in ProgramShape: 0 n, 1 h, 2 w, 3 c.
inline int named_axis(const ProgramValue& v, int axis) { return v.planar && axis ? axis == 1 ? 3 : axis - 1 : axis; }
// Whether a value of its rank has more than one value along an axis of memory.
inline bool has_axis(const ProgramValue& v, int64_t axis) {
  return within(axis, 0, 3) && (v.rank == 4 || axis == 0 || axis == 3 || (v.rank == 3 && axis == 1));
}

template <class Payload>
const char* check_join(const StepCheck& c, const Payload& p) {
  if (p.join_axis == -1) return c.written || p.join_at || p.join_total ? "it writes a value that exists already, or a part of none" : nullptr;
  if (p.join_axis == 0 || !has_axis(c.y, p.join_axis)) return "it joins along an axis that its output does not have";
  const bool by_channels = named_axis(c.y, p.join_axis) == 3 && c.y.channels;
  if (p.join_total < 0 || (p.join_total == 0 && !by_channels)) return "it joins to no size";
  return p.join_at >= 0 && c.written == (p.join_at > 0) ? nullptr : "it writes a value that exists already, or a part of none";
}

// The size of y along the axis of memory, of which `part` is written.
template <class Payload>
int64_t whole_size(const ProgramValue& y, const Payload& p, int axis, int64_t part) {
  return axis != p.join_axis ? part : p.join_total ? p.join_total : y.channels;
}

// The sizes of y, of which a part of these sizes is written; or why it does not fit.
template <class Payload>
std::string join_shape(const StepCall& call, const Payload& p, const Box& part, ProgramShape& y) {
  const ProgramValue& value = call.y();
  Box whole;
  for (int axis = 0; axis < 4; ++axis) whole[size_t(axis)] = whole_size(value, p, axis, part[size_t(axis)]);
  y = value.planar ? ProgramShape{whole[0], whole[2], whole[3], whole[1]} : ProgramShape{whole[0], whole[1], whole[2], whole[3]};
  if (value.channels && y.c != value.channels) return sentence("it writes ", y.c, " channels where its output has ", value.channels);
  if (p.join_axis < 0) return {};
  const int64_t end = p.join_at + part[size_t(p.join_axis)];
  if (end > whole[size_t(p.join_axis)]) return sentence("its part ends at ", end, " of ", whole[size_t(p.join_axis)]);
  y.join_axis = named_axis(value, p.join_axis), y.joined = end;
  if (p.join_at == 0) return {};
  const ProgramShape& before = call.y_shape();
  if (before.join_axis != y.join_axis || before.joined != p.join_at) return sentence("its part begins at ", p.join_at, ", where none before it has ended");
  if (before.n == y.n && before.h == y.h && before.w == y.w && before.c == y.c) return {};
  const Box is = box_of(value, before);
  return sentence("it joins a part of [", whole[0], ", ", whole[1], ", ", whole[2], ", ", whole[3], "] to one of [", is[0], ", ", is[1], ", ", is[2], ", ", is[3], "]");
}

// Elements of y from one index of each axis of memory to the next, and in front of its part.
template <class Payload>
Box strides_of(const StepCall& call, const Payload& p, int64_t& before) {
  const Box y = box_of(call.y(), call.y_shape());
  const Box strides{y[1] * y[2] * y[3], y[2] * y[3], y[3], 1};
  before = p.join_axis < 0 ? 0 : p.join_at * strides[size_t(p.join_axis)];
  return strides;
}

}  // namespace qk
