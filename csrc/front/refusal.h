// How an argument is refused: one sentence that names the value at fault. The fronts of torch and NumPy catch it and throw
// what their users expect.
#pragma once
#include <stdexcept>

#include "../cpu/sentence.h"

namespace qk {

struct Refusal : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
struct TypeRefusal : Refusal {  // the dtype is what is wrong
  using Refusal::Refusal;
};

template <class Kind = Refusal, class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void refuse(const Parts&... parts) {
  throw Kind(sentence(parts...));
}

template <class... Parts>
void check(bool good, const Parts&... parts) {
  if (!good) [[unlikely]] refuse(parts...);
}

template <class... Parts>
void check_type(bool good, const Parts&... parts) {
  if (!good) [[unlikely]] refuse<TypeRefusal>(parts...);
}

}  // namespace qk
