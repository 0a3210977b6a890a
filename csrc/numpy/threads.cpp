#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__unix__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qk {
namespace {

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// One job at a time, at which whoever comes in time takes part: a worker that is not on a core holds nobody up. Workers
// look for the next job for some microseconds before they sleep: the steps of a model follow each other faster than a
// thread wakes up.
class Pool {
  static constexpr uint64_t kMaxThreads = 1024;

 public:
  void run(int64_t count, int threads, void (*body)(void*, int64_t), void* context) {
    std::unique_lock<std::mutex> mine(callers_, std::try_to_lock);
    const int helpers = int(std::min<int64_t>(count, threads)) - 1;
    if (!mine || helpers < 1) {
      for (int64_t i = 0; i < count; ++i) body(context, i);
      return;
    }
    for (; started_ < helpers; ++started_) std::thread(&Pool::work, this, started_, job_.load()).detach();
    body_ = body, context_ = context, count_ = count;
    next_ = 0;
    post(helpers);
    wake_.notify_all();
    take();
    post(0);  // whoever has not begun by now has nothing left to do
    while (inside_.load()) pause();
  }

 private:
  void post(int helpers) {
    std::lock_guard<std::mutex> lock(sleep_);  // so that none falls asleep between looking and sleeping
    job_ = (job_ / kMaxThreads + 1) * kMaxThreads + uint64_t(helpers);
  }

  void take() {
    for (int64_t i; (i = next_.fetch_add(1)) < count_;) body_(context_, i);
  }

  void work(int id, uint64_t seen) {
    constexpr int kLooks = 4000;
    for (;;) {
      for (int look = 0; look < kLooks && job_.load(std::memory_order_acquire) == seen; ++look) pause();
      if (job_.load() == seen) {
        std::unique_lock<std::mutex> lock(sleep_);
        wake_.wait(lock, [&] { return job_.load() != seen && job_.load() % kMaxThreads; });
      }
      seen = job_.load();
      if (uint64_t(id) >= seen % kMaxThreads) continue;
      ++inside_;
      if (job_.load() == seen) take();  // still open: the caller waits for us
      --inside_;
    }
  }

  std::mutex callers_, sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> job_{0};  // its number, and how many may help: one value, so that nobody mixes two jobs
  std::atomic<int64_t> next_{0};
  std::atomic<int> inside_{0};
  int started_ = 0;
  void (*body_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
};

// Never destroyed: its threads may still look at it when the process ends. A forked child has none of them, and starts
// with a pool of its own.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  if (Pool* p = pool.load()) return *p;
#if defined(__unix__)
  static const int once = pthread_atfork(nullptr, nullptr, [] { pool = nullptr; });
  (void)once;
#endif
  Pool* fresh = new Pool;
  Pool* expected = nullptr;
  if (pool.compare_exchange_strong(expected, fresh)) return *fresh;
  delete fresh;
  return *expected;
}

thread_local int threads_of_calls = 1;

}  // namespace

Parallel plain_threads(int threads) {
  threads_of_calls = threads;
  return {threads, [](int64_t count, void (*body)(void*, int64_t), void* context) { the_pool().run(count, threads_of_calls, body, context); }};
}

}  // namespace qk
