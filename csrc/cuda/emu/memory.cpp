// Memory of the emulator: bounds, and who may touch what whose turn it is.
#include <algorithm>
#include <cstring>

#include "emu.h"

namespace qk::emu {

char* shared;
int64_t shared_size;
int epoch;

namespace {

constexpr int64_t kAlignment = 1024;  // of shared memory
constexpr int kPoison = 0x7b;
constexpr int kAlways = 0x7fffffff;   // an epoch that never becomes an old one
constexpr int kReaders = 2;           // of four bytes that are told apart

// The last to touch four bytes of shared memory.
struct Cell {
  Stamp writer, readers[kReaders];
  int crowd = -1;            // epoch of the last reader beyond those
  bool fenced = false;       // the asynchronous proxy sees what was written
};

struct Buffer {
  uintptr_t begin, end;
};

std::vector<Buffer> buffers;
std::vector<Cell> cells;
std::vector<char> storage;

// Whether somebody with this clock, in this epoch, knows that it has happened.
bool known(const Stamp& s, int now, const Clock& seen) { return s.who == kNobody || s.epoch < now || seen[size_t(s.who)] >= s.time; }

const char* name(const Stamp& s) { return s.epoch == kAlways ? "a bulk copy" : "a thread"; }

void check_readers(const Cell& cell, int64_t c, int now, const Clock& seen, const char* what) {
  for (const Stamp& r : cell.readers)
    if (!known(r, now, seen)) fail("race: %s overwrites shared memory %d, which thread %d may still read", what, int(c * 4), r.who);
  if (cell.crowd >= now) fail("race: %s overwrites shared memory %d, which several threads may still read", what, int(c * 4));
}

void write(Cell& cell, const Stamp& stamp, bool fenced) {
  cell = Cell{};
  cell.writer = stamp;
  cell.fenced = fenced;
}

void read(Cell& cell, const Stamp& stamp) {
  for (Stamp& r : cell.readers)
    if (r.who == stamp.who || r.epoch < stamp.epoch) {
      r = stamp;
      return;
    }
  cell.crowd = stamp.epoch;
}

Stamp stamp_of(const Thread& t) { return {t.index, epoch, t.seen[size_t(t.index)]}; }

void check_inside(int64_t at, int64_t bytes) {
  if (at < 0 || at + bytes > shared_size) fail("shared memory [%d, %d) of %d bytes", int(at), int(at + bytes), int(shared_size));
}

}  // namespace

void learn(Clock& to, const Clock& from) {
  for (size_t i = 0; i < to.size(); ++i) to[i] = std::max(to[i], from[i]);
}

Clock publish(Thread& t) {
  const Clock known = t.seen;
  ++t.seen[size_t(t.index)];
  return known;
}

void join_warp(Thread* lanes) {
  Clock all = lanes[0].seen;
  for (int l = 1; l < kWarp; ++l) learn(all, lanes[l].seen);
  for (int l = 0; l < kWarp; ++l) {
    lanes[l].seen = all;
    ++lanes[l].seen[size_t(lanes[l].index)];
  }
}

void allocate_shared(int64_t bytes) {
  shared_size = bytes;
  storage.resize(size_t(bytes + kAlignment));
  shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(storage.data()) + kAlignment - 1) / kAlignment * kAlignment);
  cells.resize(size_t(bytes / 4 + 1));
}

void poison_shared() {
  std::memset(shared, kPoison, size_t(shared_size));
  std::fill(cells.begin(), cells.end(), Cell{});
  epoch = 0;
}

void announce(const void* p, int64_t bytes) {
  buffers.push_back({reinterpret_cast<uintptr_t>(p), reinterpret_cast<uintptr_t>(p) + uintptr_t(bytes)});
}

void forget_all() { buffers.clear(); }

void check_global(const void* p, int64_t bytes, int64_t alignment) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p);
  if (at % uintptr_t(alignment)) fail("%d bytes of global memory at a multiple of %d only", int(bytes), int(at & -at));
  for (size_t i = 0; i < buffers.size(); ++i)
    if (at >= buffers[i].begin && at + uintptr_t(bytes) <= buffers[i].end) {
      std::swap(buffers[i], buffers[i / 2]);  // often asked for: found sooner next time
      return;
    }
  fail("%d bytes of global memory outside of every buffer", int(bytes));
}

void touch_shared(const void* p, int64_t bytes, int64_t alignment, bool writes) {
  const int64_t at = static_cast<const char*>(p) - shared;
  check_inside(at, bytes);
  if (at % alignment) fail("%d bytes of shared memory at %d", int(bytes), int(at));
  const Thread& me = *current;
  for (int64_t c = at / 4; c <= (at + bytes - 1) / 4; ++c) {
    Cell& cell = cells[size_t(c)];
    if (!known(cell.writer, epoch, me.seen))
      fail("race: shared memory %d was written by %s %d, and no barrier since", int(c * 4), name(cell.writer), cell.writer.who);
    if (writes) check_readers(cell, c, epoch, me.seen, "a thread");
    if (writes) write(cell, stamp_of(me), false);
    else read(cell, stamp_of(me));
  }
}

void touch_async(uint32_t address, int bytes) {
  check_inside(address, bytes);
  for (uint32_t c = address / 4; c <= (address + uint32_t(bytes) - 1) / 4; ++c) {
    Cell& cell = cells[c];
    if (cell.writer.who == kNobody) fail("a product reads shared memory %d, which nobody wrote", int(c * 4));
    if (!known(cell.writer, epoch, current->seen))
      fail("race: a product reads shared memory %d, written by %s %d, and no barrier since", int(c * 4), name(cell.writer), cell.writer.who);
    if (!cell.fenced) fail("a product reads shared memory %d, written without a fence by thread %d", int(c * 4), cell.writer.who);
    read(cell, stamp_of(*current));
  }
}

void touch_bulk(uint32_t address, int bytes, int since, const Clock& seen, int slot, int count) {
  check_inside(address, bytes);
  for (uint32_t c = address / 4; c < (address + uint32_t(bytes)) / 4; ++c) {
    Cell& cell = cells[c];
    if (!known(cell.writer, since, seen)) fail("race: a bulk copy overwrites shared memory %d, just written by %s", int(c * 4), name(cell.writer));
    check_readers(cell, c, since, seen, "a bulk copy");
    if (cell.writer.who != kNobody && !cell.fenced) fail("a bulk copy overwrites shared memory %d, written without a fence", int(c * 4));
    write(cell, {slot, kAlways, count}, true);
  }
}

void fence_async() {
  for (const Access& a : current->unfenced)
    for (uint32_t c = a.address / 4; c < (a.address + uint32_t(a.bytes)) / 4; ++c)
      if (cells[c].writer.who == current->index) cells[c].fenced = true;
  current->unfenced.clear();
}

void land_copies(int keep) {
  auto& copies = current->copies;
  const auto stays = std::partition_point(copies.begin(), copies.end(), [&](const Copy& c) { return c.group < current->group - keep; });
  for (auto c = copies.begin(); c != stays; ++c) {
    touch_shared(c->to, c->bytes, c->bytes, true);
    current->unfenced.push_back({uint32_t(c->to - shared), c->bytes, true});
    if (c->from) std::memcpy(c->to, c->from, size_t(c->bytes));
    else std::memset(c->to, 0, size_t(c->bytes));
  }
  counters.copies += stays - copies.begin();
  copies.erase(copies.begin(), stays);
}

}  // namespace qk::emu
