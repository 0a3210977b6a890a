// Memory from the caller, handed out in aligned pieces. A null base only counts.
#pragma once
#include <cstdint>

#include "layout.h"

namespace qk {

class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += round_up(count * int64_t(sizeof(T)), kAlignment);
    return piece;
  }
  // The offset of so many bytes.
  int64_t place(int64_t bytes) {
    const int64_t at = used_;
    used_ += round_up(bytes, kAlignment);
    return at;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace qk
