// The caller's threads, behind one function pointer: torch's pool, or plain threads for NumPy.
#pragma once
#include <algorithm>
#include <cstdint>

namespace qk {

constexpr int kMaxThreads = 256;  // of one call
constexpr int64_t kElementsPerThread = 1 << 15;  // copied or scanned, below which another thread does not pay

// Threads for so much work, where each needs at least `each` to pay.
inline int workers_for(int64_t work, int64_t each, int threads) {
  return int(std::clamp<int64_t>(work / each, 1, std::clamp(threads, 1, kMaxThreads)));
}

struct Parallel {
  int threads = 1;
  // Calls body(context, i) for every i in [0, count), concurrently; null runs them in turn.
  void (*run)(int64_t count, void (*body)(void* context, int64_t i), void* context) = nullptr;

  template <class Body>
  void operator()(int64_t count, Body&& body) const {
    if (count <= 1 || !run) {
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    run(count, [](void* context, int64_t i) { (*static_cast<Body*>(context))(i); }, &body);
  }
};

// The i-th of `parts` even shares of [0, count).
struct Share {
  int64_t begin, end;
};
constexpr Share share(int64_t count, int64_t parts, int64_t i) { return {count * i / parts, count * (i + 1) / parts}; }

// Images are run some at a time, and what is left: of the plans of these two, that of so many.
template <class Part>
const Part& part_of(const Part* parts, int64_t images) { return parts[images != parts[0].images]; }

}  // namespace qk
