// y[i] = table[x[i]] over unsigned bytes; where shuffles take tables of 16 or more, many at a time.
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

template <class V>
void lookup(const int8_t* table, int64_t count, const int8_t* x, int8_t* y) {
  for (int64_t i = V::lookup_bytes(table, count, x, y); i < count; ++i) y[i] = table[uint8_t(x[i])];
}

}  // namespace
}  // namespace qk
