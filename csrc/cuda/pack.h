// Canonical weights to the packed layout and back, on a GPU; core/layout.h.
#pragma once
#include "device.h"
#include "../core/layout.h"

namespace qk::cuda {

// weight [oc, c, kh, kw] int8, contiguous, c = channels per group. `bad` (int32, on the device) becomes 1 where a value
// is -128, which no kernel takes.
int pack_weight(const int8_t* weight, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* packed,
                uint32_t* bad, Stream stream);
int unpack_weight(const int8_t* packed, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups, int8_t* weight,
                  Stream stream);

}  // namespace qk::cuda
