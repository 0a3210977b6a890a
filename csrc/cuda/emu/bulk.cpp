#include "bulk.h"

#include <algorithm>
#include <map>

namespace qk::emu {
namespace {

struct Barrier {
  int slot;                  // of clocks, for what was copied
  int arrivals, missing;     // of a phase
  int bytes = 0;             // expected, and not there yet
  int phase = 0;
  int copies = 0;            // that have landed
  int by, epoch;             // of its initialisation
  bool fenced = false;
  Clock arriving, ended;     // what those who arrived knew: in this phase, in those before
};

std::map<uint32_t, Barrier> barriers;
std::vector<BulkCopy> copies;

Barrier& barrier_at(uint32_t at) {
  const auto found = barriers.find(at);
  if (found == barriers.end()) fail("no barrier was initialised at %d", int(at));
  Barrier& b = found->second;
  if (current && b.by != current->index && b.epoch == epoch) fail("the barrier at %d is used before a barrier of the block", int(at));
  return b;
}

void end_phase(Barrier& b) {
  if (b.missing > 0 || b.bytes != 0) return;
  ++b.phase;
  b.missing = b.arrivals;
  b.ended = b.arriving;
}

bool waits_for(const Thread& t, uint32_t at) { return t.state == Thread::at_phase && t.phase_of == at; }

// Bytes of a line of the box, zeros where it lies outside of the tensor.
void copy_line(const BulkCopy& c, int64_t i1, int64_t i2, uint32_t to) {
  const cuda::TensorShape& s = c.map.shape;
  const int64_t at[] = {c.first[0], c.first[1] + i1, c.first[2] + i2};
  bool inside = true;
  for (int d = 1; d < s.rank; ++d) inside = inside && at[d] >= 0 && at[d] < s.size[d];
  const int64_t count = inside ? std::clamp<int64_t>(s.size[0] - at[0], 0, s.box[0]) : 0;
  const char* const from = c.map.base + at[0] + at[1] * s.stride[0] + at[2] * s.stride[1];
  if (count > 0) check_global(from, count, 1);
  for (uint32_t b = 0; b < uint32_t(s.box[0]); ++b) {
    const uint32_t address = to + b;
    shared[address ^ (address >> 7 & 7) << 4] = b < count ? from[b] : char(0);
  }
}

void land(const BulkCopy& c) {
  const int* const box = c.map.shape.box;
  const int lines = box[1] * (c.map.shape.rank > 2 ? box[2] : 1), bytes = lines * box[0];
  Barrier& b = barrier_at(c.barrier);
  touch_bulk(c.to, bytes, c.epoch, c.known, b.slot, ++b.copies);
  for (int line = 0; line < lines; ++line) copy_line(c, line % box[1], line / box[1], c.to + uint32_t(line * box[0]));
  b.arriving[size_t(b.slot)] = b.copies;
  b.bytes -= bytes;
  if (b.bytes < 0) fail("%d bytes arrived at the barrier at %d that nobody expected", bytes, int(c.barrier));
  end_phase(b);
}

}  // namespace

void init_barrier(uint32_t at, int arrivals) {
  if (at % 8 || at + 8 > shared_size) fail("a barrier at %d of %d bytes", int(at), int(shared_size));
  if (barriers.size() == kBarriers) fail("more than %d barriers", kBarriers);
  Barrier b;
  b.slot = threads + int(barriers.size());
  b.arrivals = b.missing = arrivals;
  b.by = current->index;
  b.epoch = epoch;
  b.arriving = b.ended = Clock(size_t(threads + kBarriers));
  if (!barriers.emplace(at, b).second) fail("the barrier at %d is initialised again", int(at));
}

void fence_barriers() {
  for (auto& [at, b] : barriers) b.fenced |= b.by == current->index;
}

void arrive(uint32_t at, int expected_bytes) {
  Barrier& b = barrier_at(at);
  b.bytes += expected_bytes;
  learn(b.arriving, publish(*current));
  if (--b.missing < 0) fail("the barrier at %d has more arrivals than it counts", int(at));
  end_phase(b);
}

void wait_for_phase(uint32_t at, int parity) {
  barrier_at(at);
  current->phase_of = at;
  current->parity = parity;
  if (!may_pass(*current)) pause(Thread::at_phase);
}

bool may_pass(Thread& t) {
  const Barrier& b = barrier_at(t.phase_of);
  if (b.phase % 2 == t.parity) return false;
  learn(t.seen, b.ended);
  t.state = Thread::running;
  return true;
}

void bulk_load(BulkCopy c, int rank) {
  if (!barrier_at(c.barrier).fenced) fail("a copy arrives at the barrier at %d, which was not fenced", int(c.barrier));
  if (c.map.shape.rank != rank) fail("a copy of %d dimensions of a tensor of %d", rank, c.map.shape.rank);
  if (c.to % 1024) fail("a swizzled copy to shared memory %d, no multiple of 1024", int(c.to));
  c.epoch = epoch;
  c.known = publish(*current);
  copies.push_back(c);
}

bool land_late_copy() {
  std::vector<size_t> due;
  for (size_t i = 0; i < copies.size(); ++i)
    if (std::any_of(fibers.begin(), fibers.begin() + threads, [&](const Thread& t) { return waits_for(t, copies[i].barrier); })) due.push_back(i);
  if (due.empty()) return false;
  const size_t chosen = due[random_below(uint32_t(due.size()))];
  const BulkCopy c = copies[chosen];
  copies.erase(copies.begin() + long(chosen));
  current = nullptr;
  land(c);
  return true;
}

bool copies_under_way() { return !copies.empty(); }

void forget_barriers() {
  barriers.clear();
  copies.clear();
}

}  // namespace qk::emu
