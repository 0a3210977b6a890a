// The packed weight, one layout for every CPU instruction set:
//
//   [groups][N/16][K/4][16][4] int8, then [groups][N/16*16] int32 sums S[n] = sum_k w[n,k],
//   then four int32: version, groups, N, K, so that a weight is never read with another shape
//
// N padded to 16 and K to 64 with zeros. Four K values of one output channel are neighbours, as
// tdpbusd, vpdpbusd, vpmaddubsw and sdot read them: 64 bytes are 16 channels by 4 K.
// K of a convolution runs over kernel rows, each padded to 4, and in a row over columns, then channels.
// A depthwise weight [C,1,KH,KW] is packed as N = C, K = KH*KW, one group.
#pragma once
#include <cstdint>

namespace qk {

constexpr int64_t kPanel = 16;           // output channels of a panel
constexpr int32_t kLayoutVersion = 2;
constexpr int64_t kAlignment = 64;       // of addresses of weights and of memory to work in: a load that crosses lines costs two

inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kAlignment == 0; }
inline void* aligned(void* p) { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(p) + kAlignment - 1) / kAlignment * kAlignment); }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct PackedLayout {
  int64_t groups, n, k;                  // n: output channels of one group

  constexpr int64_t n_padded() const { return round_up(n, kPanel); }
  constexpr int64_t k_padded() const { return round_up(k, 64); }
  constexpr int64_t panel_bytes() const { return kPanel * k_padded(); }
  constexpr int64_t group_bytes() const { return n_padded() * k_padded(); }
  constexpr int64_t values_bytes() const { return groups * group_bytes(); }
  constexpr int64_t shape_offset() const { return values_bytes() + groups * n_padded() * 4; }
  constexpr int64_t bytes() const { return shape_offset() + 16; }
  constexpr int64_t offset(int64_t g, int64_t row, int64_t col) const {
    return g * group_bytes() + row / kPanel * panel_bytes() + col / 4 * 64 + row % kPanel * 4 + col % 4;
  }
  const int8_t* values(const int8_t* packed, int64_t g) const { return packed + g * group_bytes(); }
  const int32_t* sums(const int8_t* packed, int64_t g) const {
    return reinterpret_cast<const int32_t*>(packed + values_bytes()) + g * n_padded();
  }
  // Whether `size` packed bytes hold a weight of this layout.
  bool matches(const int8_t* packed, int64_t size) const {
    if (size != bytes()) return false;
    int32_t shape[4];
    __builtin_memcpy(shape, packed + shape_offset(), sizeof shape);
    return shape[0] == kLayoutVersion && shape[1] == groups && shape[2] == n && shape[3] == k;
  }
};

constexpr bool is_depthwise(int64_t channels_per_group, int64_t groups) {
  return channels_per_group == 1 && groups > 1;
}

// Narrow groups are merged until they fill a panel: `merge` groups become one whose weight is block-diagonal. The
// panel's lanes would be idle otherwise, and pieces of x and of the output get that much longer.
constexpr int64_t merged_groups(int64_t oc, int64_t channels_per_group, int64_t groups) {
  if (is_depthwise(channels_per_group, groups)) return groups;
  const int64_t n = oc / groups;
  for (int64_t merge = kPanel / n < groups ? kPanel / n : groups; merge > 1; --merge)
    if (groups % merge == 0) return merge;
  return 1;
}

// K of one kernel row, padded so that the next one starts a new group of four.
constexpr int64_t kernel_row(int64_t merged_channels, int64_t kw) { return round_up(merged_channels * kw, 4); }

// weight [oc, channels_per_group, kh, kw] of a convolution; a linear weight is kh = kw = groups = 1.
constexpr PackedLayout weight_layout(int64_t oc, int64_t channels_per_group, int64_t kh, int64_t kw, int64_t groups) {
  if (is_depthwise(channels_per_group, groups)) return {1, oc, kh * kw};
  const int64_t merge = merged_groups(oc, channels_per_group, groups);
  const int64_t channels = channels_per_group * merge;
  return {groups / merge, oc / groups * merge, (kh - 1) * kernel_row(channels, kw) + kw * channels};
}

}  // namespace qk
