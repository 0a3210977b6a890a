// Rows that are named by number: by an int64 of the caller's, or by what the program has computed, in float32.
#pragma once
#include <cmath>

#include "../move.h"
#include "step.h"

namespace qk {

inline Ids ids_of(const StepCall& call, int i) {
  const int32_t v = call.read(i);
  if (call.value(v).type == DType::s64) return {call.data_as<const int64_t>(v), nullptr};
  return {nullptr, call.data_as<const float>(v)};
}

// Why one of the ids that the i-th read value holds names none of `rows`; empty where they all do.
inline std::string check_ids(const StepCall& call, int i, int64_t rows) {
  const Ids ids = ids_of(call, i);
  const ProgramShape& x = call.shape(call.read(i));
  const int64_t each = x.h * x.w * x.c;
  for (int64_t at = 0; at < x.n * each; ++at) {
    if (ids.names(at, rows)) continue;
    const std::string id = ids.whole ? sentence(ids.whole[at]) : sentence(ids.computed[at]);
    return sentence("the id at [", call.first + at / each, ", ", at % each, "] is ", id, ", outside [0, ", rows, ")");
  }
  return {};
}

}  // namespace qk
