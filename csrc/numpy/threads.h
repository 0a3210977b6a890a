// The threads of a process without torch: started at first use, kept, asleep when there is nothing to do.
#pragma once
#include "../cpu/parallel.h"

namespace qk {

// For calls from this thread until the next one. A caller that finds the threads at work for another computes alone.
Parallel plain_threads(int threads);

}  // namespace qk
