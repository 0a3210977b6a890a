#include "emu.h"

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace qk::emu {

Counters counters;
Thread* current;
int64_t block[3], blocks[3];
int threads;
std::vector<Thread> fibers;

namespace {

constexpr int64_t kStack = 256 * 1024;

ucontext_t scheduler;
const std::function<void()>* body;
int free_registers;                   // of the block
uint64_t random_state = 1;

void run_thread() {
  (*body)();
  current->state = Thread::done;
  swapcontext(&current->context, &scheduler);
}

// Lanes served together read or write different banks, or the same word. Compared only where all lanes did the same.
void count_conflicts(Thread* lanes) {
  const auto& first = lanes[0].accesses;
  const bool alike = std::all_of(lanes, lanes + kWarp, [&](const Thread& t) {
    return std::equal(t.accesses.begin(), t.accesses.end(), first.begin(), first.end(),
                      [](const Access& a, const Access& b) { return a.bytes == b.bytes && a.write == b.write; });
  });
  for (size_t i = 0; alike && i < first.size(); ++i) {
    const int bytes = std::max(first[i].bytes, 4), together = std::min(kWarp, 128 / bytes), banks = 128 / bytes;
    for (int begin = 0; begin < kWarp; begin += together) {
      std::array<int64_t, 32> owner;
      owner.fill(-1);
      for (int l = begin; l < begin + together; ++l) {
        const int64_t unit = lanes[l].accesses[i].address / uint32_t(bytes);
        int64_t& mine = owner[size_t(unit % banks)];
        if (mine >= 0 && mine != unit) ++counters.conflicts;
        mine = unit;
      }
    }
  }
  for (int l = 0; l < kWarp; ++l) lanes[l].accesses.clear();
}

void start(Thread& t, int index) {
  if (!t.stack) t.stack = std::make_unique<char[]>(kStack);
  t.index = index;
  t.state = Thread::running;
  t.group = 0;
  t.copies.clear();
  t.accesses.clear();
  t.unfenced.clear();
  t.products.clear();
  t.registers = 65536 / threads / 8 * 8;
  t.registers_fenced = false;
  t.product_group = 0;
  t.seen.assign(size_t(threads + kBarriers), 0);
  t.seen[size_t(index)] = 1;
  getcontext(&t.context);
  t.context.uc_stack.ss_sp = t.stack.get();
  t.context.uc_stack.ss_size = kStack;
  t.context.uc_link = nullptr;
  makecontext(&t.context, run_thread, 0);
}

bool takes_registers(Thread& t) {
  if (free_registers < t.wanted) return false;
  free_registers -= t.wanted;
  t.registers += t.wanted;
  t.state = Thread::running;
  return true;
}

// Whether a thread can go on.
bool ready(Thread& t) {
  switch (t.state) {
    case Thread::running: return true;
    case Thread::at_phase: return may_pass(t);
    case Thread::at_registers: return takes_registers(t);
    default: return false;
  }
}

void resume(Thread& t) {
  current = &t;
  swapcontext(&scheduler, &t.context);
}

void execute(Thread* lanes, int count) {
  for (int l = 1; l < count; ++l)
    if (lanes[l].collective != lanes[0].collective) fail("lanes 0 and %d are in different collectives", l);
  for (int w = 0; w < count; w += kWarp) count_conflicts(lanes + w);
  lanes[0].collective(lanes);
  ++counters.collectives;
  for (int l = 0; l < count; ++l) lanes[l].state = Thread::running;
}

// Runs a warp to its next meeting points; true if anything happened.
bool run_warp(Thread* lanes) {
  bool progress = false;
  for (int l = 0; l < kWarp; ++l)
    if (ready(lanes[l])) {
      resume(lanes[l]);
      progress = true;
    }
  const auto waits = [](const Thread& t) { return t.state == Thread::at_collective && t.lanes == kWarp; };
  const auto count = std::count_if(lanes, lanes + kWarp, waits);
  if (count == 0) return progress;
  current = &*std::find_if(lanes, lanes + kWarp, waits);
  if (count < kWarp) fail("%d of 32 lanes are in a warp collective", int(count));
  execute(lanes, kWarp);
  return true;
}

// A warpgroup whose threads have all met.
bool run_warpgroup(Thread* lanes) {
  for (int l = 0; l < kWarpgroup; ++l)
    if (lanes[l].state != Thread::at_collective || lanes[l].lanes != kWarpgroup) return false;
  execute(lanes, kWarpgroup);
  return true;
}

// All threads are at the barrier, or gone.
bool open_barrier() {
  int waiting = 0;
  for (int i = 0; i < threads; ++i) {
    const Thread::State s = fibers[size_t(i)].state;
    if (s != Thread::at_barrier && s != Thread::done) return false;
    waiting += s == Thread::at_barrier;
  }
  for (int w = 0; w < threads; w += kWarp) count_conflicts(&fibers[size_t(w)]);
  for (int i = 0; i < threads; ++i)
    if (fibers[size_t(i)].state == Thread::at_barrier) fibers[size_t(i)].state = Thread::running;
  ++epoch;
  return waiting > 0;
}

void run_block() {
  poison_shared();
  forget_barriers();
  free_registers = 0;
  for (int i = 0; i < threads; ++i) start(fibers[size_t(i)], i);
  std::vector<int> order(size_t(threads / kWarp));
  for (size_t i = 0; i < order.size(); ++i) order[i] = int(i);
  for (;;) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_below(uint32_t(i))]);
    bool progress = false;
    for (int w : order) progress |= run_warp(&fibers[size_t(w * kWarp)]);
    for (int t = 0; t + kWarpgroup <= threads; t += kWarpgroup) progress |= run_warpgroup(&fibers[size_t(t)]);
    if (std::all_of(fibers.begin(), fibers.begin() + threads, [](const Thread& t) { return t.state == Thread::done; })) break;
    progress |= open_barrier();
    if (!progress && !land_late_copy()) fail("deadlock, with %d registers free", free_registers);
  }
  for (int i = 0; i < threads; ++i)
    if (current = &fibers[size_t(i)]; !current->copies.empty() || !current->products.empty())
      fail("copies or products are under way at the end");
  if (copies_under_way()) fail("bulk copies are under way at the end");
}

}  // namespace

uint32_t random_below(uint32_t n) {  // a linear congruential generator is random enough to shuffle with
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return uint32_t((random_state >> 33) % n);
}

void pause(Thread::State state) {
  current->state = state;
  swapcontext(&current->context, &scheduler);
}

void fail(const char* format, ...) {
  std::va_list values;
  va_start(values, format);
  std::fprintf(stderr, "emulator: block (%d, %d, %d) thread %d: ", int(block[0]), int(block[1]), int(block[2]),
               current ? current->index : -1);
  std::vfprintf(stderr, format, values);
  std::fputc('\n', stderr);
  va_end(values);
  std::fflush(stdout);
  std::_Exit(3);
}

void meet(Collective collective, const void* in, void* out, int lanes) {
  current->lanes = lanes;
  current->collective = collective;
  current->in = in;
  current->out = out;
  pause(Thread::at_collective);
}

void release_registers(int count) {
  if (count % 8 || count > current->registers) fail("%d registers are kept of %d", count, current->registers);
  free_registers += current->registers - count;
  current->registers = count;
}

void claim_registers(int count) {
  if (count % 8 || count < current->registers || count > 256) fail("%d registers are claimed by a thread that has %d", count, current->registers);
  current->wanted = count - current->registers;
  if (!takes_registers(*current)) pause(Thread::at_registers);
}

void meet_block() { pause(Thread::at_barrier); }

void launch(const int64_t grid[3], int thread_count, int64_t shared_bytes, const std::function<void()>& kernel) {
  if (thread_count <= 0 || thread_count > 1024 || thread_count % kWarp) fail("%d threads in a block", thread_count);
  threads = thread_count;
  body = &kernel;
  allocate_shared(shared_bytes);
  if (fibers.size() < size_t(threads)) fibers.resize(size_t(threads));
  std::copy(grid, grid + 3, blocks);
  for (block[2] = 0; block[2] < grid[2]; ++block[2])
    for (block[1] = 0; block[1] < grid[1]; ++block[1])
      for (block[0] = 0; block[0] < grid[0]; ++block[0]) run_block();
  current = nullptr;
}

}  // namespace qk::emu
