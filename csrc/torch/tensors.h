// What operators on the CPU do with tensors: allocate, copy where a driver cannot read, lend torch's threads.
#pragma once
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../cpu/parallel.h"
#include "views.h"

namespace qk {

inline Parallel torch_threads() {
  return {int(torch::stable::get_num_threads()), [](int64_t count, void (*body)(void*, int64_t), void* context) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) body(context, i);
            });
          }};
}

constexpr int64_t kLargeElements = 1 << 20;

// An output of many megabytes is mapped anew at every call, and its first touch costs more than its computation: a page
// fault every 4 KB. Asked for, Linux maps 2 MB at a time (as NumPy does for its arrays).
inline void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline Tensor empty_cpu(const Tensor& x, const Ints& size, ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
  Tensor y = empty_beside(x, size, dtype, format);
  const int64_t values = y.numel();
  if (values >= kLargeElements) prefer_huge_pages(y.mutable_data_ptr(), values * int64_t(y.element_size()));
  return y;
}

// Scratch for one call: on the stack where it is small, else from torch's allocator.
class Scratch {
 public:
  Scratch(const Tensor& x, int64_t bytes) {
    if (bytes <= int64_t(sizeof small_)) return;
    large_ = empty_cpu(x, {bytes}, ScalarType::Byte);
  }
  void* data() { return large_ ? large_->mutable_data_ptr() : small_; }

 private:
  alignas(64) char small_[8192];
  std::optional<Tensor> large_;
};

// x as the driver reads it fast: a pixel's channels together, or rows of planes that follow each other; else a copy.
inline Tensor readable(const Tensor& x) {
  const bool pixels = x.stride(1) == 1, planes = x.stride(3) == 1 && x.stride(2) == x.size(3);
  return pixels || planes ? x : torch::stable::contiguous(x);
}

}  // namespace qk
