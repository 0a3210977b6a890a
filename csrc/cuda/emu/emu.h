// The emulator: runs a kernel's own source on the CPU, block after block, a fiber a thread, and stops at what a GPU would
// punish now and then. Threads meet in barriers and warp collectives; between them warps run in a random, seeded order.
//
//   asynchronous copies  land when their group is waited for, not before: too early a read finds poison or old bytes
//   shared memory        poisoned before each block; out of bounds, misaligned, and races are errors: accesses of two
//                        threads with no barrier between them, of the block, of a warp or in shared memory
//   bank conflicts       counted: accesses of lanes that are served together, and the rows of ldmatrix
//   global memory        must lie in a buffer that was announced
//   collectives          all 32 lanes, or 128 of a warpgroup, must meet in the same one
//   warpgroup products   are computed when they are waited for, from what shared memory holds then; what they read must have
//                        been written before a barrier, and fenced for the asynchronous proxy by its writer
//   registers            of a block are a pool: a warpgroup that wants more than others released waits, here until the deadlock
//                        is noticed. What a product reads or adds to must have been fenced since the last load or wait
//   bulk copies          land when a thread waits for their barrier and nothing else can run; bytes that nobody expects,
//                        arrivals that are not counted, and what the asking thread could not know to be free are errors
//
// An error names the block, the thread and the address, and ends the process with status 3. Tests only; one kernel at a
// time. What it cannot show: that our reading of the PTX manual is right, and speed.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace qk::emu {

constexpr int kWarp = 32, kWarpgroup = 128, kBarriers = 32, kNobody = -1;

// What is known to have happened: of every thread, the last of its accesses that were published, counted by it; then, for
// every barrier in shared memory, the copies that arrived there. (Vector clocks: Mattern 1989.) A barrier of the whole
// block starts a new epoch instead, in which all accesses of those before are known.
using Clock = std::vector<int>;

struct Stamp {         // of an access
  int who = kNobody, epoch = -1, time = 0;
};

struct Copy {
  char* to;
  const char* from;    // null: zeros
  int bytes, group;
};

struct Access {
  uint32_t address;
  int bytes;
  bool write;
};

// A warpgroup product under way: sums, registers and descriptor of one of its threads.
struct Product {
  int32_t* c;
  const uint32_t* a;
  uint64_t b;
  int group;
};

struct Thread;
using Collective = void (*)(Thread* lanes);

struct Thread {
  enum State : uint8_t { running, at_barrier, at_collective, at_phase, at_registers, done };
  int index = 0;
  State state = running;
  Collective collective = nullptr;  // with its operands, at_collective
  int lanes = kWarp;                // that meet in it
  const void* in = nullptr;
  void* out = nullptr;
  std::vector<Copy> copies;         // asynchronous ones under way
  int group = 0;                    // that the next ones belong to
  std::vector<Access> accesses;     // of shared memory, since the warp last met
  std::vector<Access> unfenced;     // writes to shared memory that the asynchronous proxy may not see yet
  std::vector<Product> products;    // under way
  int product_group = 0;
  Clock seen;
  uint32_t phase_of = 0;            // address of the barrier, at_phase
  int parity = 0;
  int registers = 0, wanted = 0;    // that it has, and, at_registers, waits for besides
  bool registers_fenced = false;    // for products of the warpgroup, since they were last touched
  ucontext_t context;
  std::unique_ptr<char[]> stack;
};

struct Counters {
  int64_t conflicts = 0, collectives = 0, copies = 0;
};
extern Counters counters;

// Where the running thread is.
extern Thread* current;
extern int64_t block[3], blocks[3];
extern int threads, epoch;
extern char* shared;
extern int64_t shared_size;
extern std::vector<Thread> fibers;

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Buffers that kernels may touch, in bytes.
void announce(const void* p, int64_t bytes);
void forget_all();
void check_global(const void* p, int64_t bytes, int64_t alignment);

void touch_shared(const void* p, int64_t bytes, int64_t alignment, bool write);
void touch_async(uint32_t address, int bytes);                 // a read by the tensor cores
void fence_async();                                            // the running thread's writes
void meet(Collective collective, const void* in, void* out, int lanes = kWarp);  // returns when all have met
void meet_block();
void land_copies(int keep);                                   // of the running thread: all but the latest groups
void release_registers(int count);                            // of the running thread, which keeps so many
void claim_registers(int count);                              // returns when it has them
void join_warp(Thread* lanes);                                // a collective: each knows what all know

// Between the emulator's own files.
void pause(Thread::State state);
uint32_t random_below(uint32_t n);
void allocate_shared(int64_t bytes);
void poison_shared();
void learn(Clock& to, const Clock& from);
Clock publish(Thread& t);                                    // what it knows, and did so far
void touch_bulk(uint32_t address, int bytes, int since, const Clock& known, int slot, int count);  // a write by the copy engine
bool may_pass(Thread& t);                                     // whether the phase that it waits for has ended
bool land_late_copy();                                        // false if nobody waits for one
bool copies_under_way();
void forget_barriers();

void launch(const int64_t grid[3], int threads, int64_t shared_bytes, const std::function<void()>& kernel);

}  // namespace qk::emu
