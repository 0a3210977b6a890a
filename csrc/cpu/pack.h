// Canonical weights to the packed layout and back, exactly.
#pragma once
#include "../core/layout.h"

namespace qk {

// weight [oc, c, kh, kw] int8, contiguous, c = channels per group. False where a value is -128, which no kernel takes.
bool pack_weight(const int8_t* weight, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* packed);
void unpack_weight(const int8_t* packed, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* weight);

}  // namespace qk
