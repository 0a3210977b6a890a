// Axes taken apart, sliced, put in another order and together again: reshape, permute, slices, splits and joins of any box.
//
// The axes of x in memory are products of atoms, listed outermost first; y's axes are products of the same atoms, sliced, in
// another order. The first atom is the batch and stays where it is, so that a call can still be cut by images.
#include <algorithm>

#include "../move.h"
#include "join.h"

namespace qk {
namespace {

#define QK_REARRANGE(F)                                                                      \
  F(int32_t, atoms, 0)                                                                       \
  F(Eight<0>, axis, Eight<0>())        /* of x in memory, 0 to 3, of which it is a part */   \
  F(Eight<-1>, size, Eight<-1>())      /* -1: what the others leave of the axis */           \
  F(Eight<0>, start, Eight<0>())       /* of the slice; below 0: from the end */             \
  F(Eight<-1>, count, Eight<-1>())     /* taken; -1: all from start, -1 - k: but the last k */ \
  F(Eight<1>, stride, Eight<1>())      /* of the slice */                                    \
  F(Eight<0>, order, Eight<0>())       /* the atom that is i-th outermost in y */            \
  F(Eight<0>, target, Eight<0>())      /* the axis of y in memory that this atom is a part of */ \
  QK_JOIN(F)
QK_RECORD(Payload, QK_REARRANGE);

bool takes_all(const Payload& p, int atom) { return p.start[atom] == 0 && p.count[atom] == -1 && p.stride[atom] == 1; }

bool is_view(const void* payload) {
  const Payload& p = *static_cast<const Payload*>(payload);
  for (int i = 0; i < std::min(p.atoms, Eight<0>::kMost); ++i)
    if (p.order[i] != i || !takes_all(p, i)) return false;
  return p.join_axis == -1;
}

const char* check_atoms(const StepCheck& c, const Payload& p) {
  if (!within(p.atoms, 1, Eight<0>::kMost)) return "it has no atoms, or too many";
  if (p.axis[0] || p.size[0] != -1 || !takes_all(p, 0) || p.order[0] || p.target[0]) return "its first atom is not the whole batch";
  bool rest[4] = {}, moved[Eight<0>::kMost] = {};
  for (int i = 0; i < p.atoms; ++i) {
    if (!has_axis(c.x, p.axis[i]) || !has_axis(c.y, p.target[i])) return "an atom is of an axis that its value does not have";
    if (i && (p.axis[i] < p.axis[i - 1] || p.target[i] < p.target[i - 1])) return "its axes are in no order";
    if (p.size[i] == -1 ? rest[p.axis[i]] : p.size[i] < 1) return "the sizes of its atoms are not known";
    rest[p.axis[i]] |= p.size[i] == -1;
    if (p.count[i] == 0 || p.stride[i] < 1) return "a slice of it is empty";
    if (!within(p.order[i], 0, p.atoms - 1) || moved[p.order[i]]) return "its order names an atom twice or none";
    moved[p.order[i]] = true;
  }
  return nullptr;
}

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (c.x.type != c.y.type) return "its output is of another type";
  if (const char* why = check_atoms(c, p)) return why;
  if (c.x.slot >= 0 && c.x.slot == c.y.slot && !is_view(&p)) return "it moves values within one slot";
  return check_join(c, p);
}

// The atoms once the sizes of x are known.
struct Atoms {
  int64_t size[Eight<0>::kMost], start[Eight<0>::kMost], count[Eight<0>::kMost];
};

std::string set_sizes(const Payload& p, const Box& x, Atoms& a) {
  for (int axis = 0; axis < 4; ++axis) {
    const int64_t whole = x[size_t(axis)];
    int64_t left = whole;              // 0 of an empty batch, which takes any parts
    int rest = -1;
    for (int i = 0; i < p.atoms; ++i) {
      if (p.axis[i] != axis) continue;
      if (p.size[i] == -1) rest = i;
      else if (left % p.size[i]) return sentence("its axis ", axis, " of ", whole, " is no product of its parts");
      else left /= a.size[i] = p.size[i];
    }
    if (rest >= 0) a.size[rest] = left;
    else if (left != 1) return sentence("its axis ", axis, " of ", whole, " is no product of its parts");
  }
  return {};
}

std::string set_slices(const Payload& p, Atoms& a) {
  a.start[0] = 0, a.count[0] = a.size[0];
  for (int i = 1; i < p.atoms; ++i) {
    const int64_t size = a.size[i], start = p.start[i] + (p.start[i] < 0 ? size : 0);
    const int64_t count = p.count[i] > 0 ? p.count[i] : ceil_div(size + 1 + p.count[i] - start, int64_t(p.stride[i]));
    if (start < 0 || count < 1 || start + (count - 1) * p.stride[i] >= size)
      return sentence("its slice from ", start, ", ", count, " at steps of ", p.stride[i], ", is not within ", size);
    a.start[i] = start, a.count[i] = count;
  }
  return {};
}

std::string set_atoms(const StepCall& call, const Payload& p, Atoms& a) {
  if (std::string why = set_sizes(p, box_of(call.x(), call.x_shape()), a); !why.empty()) return why;
  if (call.part.images && a.size[0] % call.part.images)
    return sentence("it mixes images: of ", call.part.images, " with ", call.x_shape().n, " parts it makes ", a.size[0]);
  return set_slices(p, a);
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const Payload& p = call.payload<Payload>();
  Atoms a;
  if (std::string why = set_atoms(call, p, a); !why.empty()) return why;
  Box part{1, 1, 1, 1};
  for (int i = 0; i < p.atoms; ++i) {
    int64_t& size = part[size_t(p.target[i])];
    if (double(size) * double(a.count[p.order[i]]) > kMaxElements) return too_large(call);
    size *= a.count[p.order[i]];
  }
  return join_shape(call, p, part, y);
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) {
  const Payload& p = call.payload<Payload>();
  const char* x = call.data_as<const char>(call.read(0));
  char* y = call.data_as<char>(call.step.y);
  if (x == y) return;
  Atoms a;
  set_atoms(call, p, a);
  MoveProblem m;
  m.item = size_of(call.y().type), m.count = p.atoms;
  int64_t from[Eight<0>::kMost], before, step = m.item;  // from: bytes of x from one index of an atom to the next
  for (int i = p.atoms; i-- > 0; step *= a.size[i]) {
    from[i] = step * p.stride[i];
    x += a.start[i] * step;
  }
  Box to = strides_of(call, p, before);
  for (int i = p.atoms; i-- > 0;) {
    const int atom = p.order[i];
    int64_t& stride = to[size_t(p.target[i])];
    m.dims[i] = {a.count[atom], from[atom], stride * m.item};
    stride *= a.count[atom];
  }
  m.x = x, m.y = y + before * m.item;
  move(m, parallel);
}

}  // namespace

const StepType rearrange_step{.name = "rearrange", .payload = kPayload<Payload>, .joins = true, .reads_planes = true, .writes_planes = true,
                              .is_view = is_view, .check = check, .shape = shape, .run = run};

}  // namespace qk
