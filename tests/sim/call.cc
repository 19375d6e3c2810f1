#include "tests/sim/call.h"

#include <algorithm>

namespace sluice::sim {

engine::TokenId DrawToken(uint64_t prefix, const Draw& draw) {
  uint64_t hash = Mix(Mix(prefix, draw.seed), (static_cast<uint64_t>(draw.index) << 32) |
                                                  static_cast<uint64_t>(draw.position));
  while (true) {
    const auto token = static_cast<engine::TokenId>(hash % kVocabulary);
    if (draw.num_output >= draw.min_tokens ||
        std::find(draw.banned.begin(), draw.banned.end(), token) == draw.banned.end()) {
      return token;
    }
    hash = Mix(hash, 1);
  }
}

bool IsNonfinite(uint64_t handle, int index, int position) {
  return Mix(Mix(handle, static_cast<uint64_t>(index)), static_cast<uint64_t>(position)) % 97 == 0;
}

float Score(uint64_t prefix, engine::TokenId token) {
  return -static_cast<float>(Chain(prefix, token) % 4096) / 128.0f;
}

}  // namespace sluice::sim
