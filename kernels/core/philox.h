#pragma once

// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror, Shaw: "Parallel random
// numbers: as easy as 1, 2, 3", SC'11. A pure function of counter and key: no state to carry, so a
// token's randomness does not depend on what was drawn before or beside it.

#include <array>
#include <cstdint>

namespace sluice::kernels {

using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;

constexpr PhiloxCounter Philox4x32(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;  // the golden ratio
    key[1] += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

// The 64 random bits of draw `draw` for the token at `position` of sequence `sequence_index`.
constexpr uint64_t SampleBits(uint64_t seed, uint32_t sequence_index, int32_t position,
                              uint32_t draw) {
  const PhiloxCounter bits =
      Philox4x32({static_cast<uint32_t>(position), sequence_index, draw, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uint64_t{bits[1]} << 32 | bits[0];
}

}  // namespace sluice::kernels
