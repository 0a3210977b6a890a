// Planes to pixels: float or int8 [batch][c][h * w] to int8 [batch][h * w][c]. A block turns 32 pixels by 32 channels.
#pragma once
#include "index.h"
#include "quantize.cuh"

namespace qk::cuda {

constexpr int kTurn = 32;
constexpr int kTurnThreads = 256;
constexpr int kTurnPitch = kTurn / 4 + 1;  // words between pixels in shared memory: odd, so that neighbours do not meet

namespace {

QK_KERNEL(kTurnThreads) planes_kernel(QK_PARAMETER QuantizePlanes p, QK_PARAMETER Divisor tiles) {
  const uint32_t image = tiles.quotient(uint32_t(block_x())), tile = tiles.remainder(uint32_t(block_x()));
  const int64_t pixel0 = int64_t(tile) * kTurn, channel0 = block_y() * kTurn;
  using V = Lanes<1>;
  Quantizer<V> quantizer{};
  if (p.x_type != DType::s8) {
    const int64_t i = p.scale_each ? image : 0;
    const bool first = tile == 0 && block_y() == 0 && thread_index() == 0;
    const ScaleZero s = p.scales.range == Range::given ? given_scale(p.scales, i) : scale_of(p.scales, i, found_ends(p.scales, i), first);
    quantizer = Quantizer<V>::make(1.0f / s.scale, s.zero);
  }
  const char* const x = static_cast<const char*>(p.x);
  const int64_t pixel = pixel0 + lane_index();
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const int64_t channel = channel0 + warp_index() * 4 + i, at = (int64_t(image) * p.c + channel) * p.pixels + pixel;
    if (pixel >= p.pixels || channel >= p.c) continue;
    const int32_t q = p.x_type == DType::s8 ? V::load_s8(static_cast<const int8_t*>(p.x) + at).v[0]
                                            : quantizer(load_float<V>(x, at, p.x_type)).v[0];
    word |= uint32_t(uint8_t(q)) << (8 * i);
  }
  char* const memory = shared_memory();
  shared_store(memory + (lane_index() * kTurnPitch + warp_index()) * 4, word);
  block_sync();
  const int own = thread_index() / 8, quad = thread_index() % 8;
  const int64_t channel = channel0 + quad * 4;
  if (pixel0 + own >= p.pixels || channel >= p.c) return;
  word = shared_load<uint32_t>(memory + (own * kTurnPitch + quad) * 4);
  int8_t* const q = p.q + (int64_t(image) * p.pixels + pixel0 + own) * p.c + channel;
  if (p.c % 4 == 0) return global_store(q, word);
  for (int i = 0; i < 4 && channel + i < p.c; ++i) global_store(q + i, int8_t(word >> (8 * i)));
}

}  // namespace
}  // namespace qk::cuda
