#pragma once

#include <cstddef>
#include <cstdint>

namespace sluice::sim {

// One step of a hash over 64-bit words.
constexpr uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
  hash ^= hash >> 32;
  hash *= 0xD6E8FEB86659FD93u;
  return hash ^ (hash >> 29);
}

// The random source of everything in a simulation: SplitMix64. Value.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    state_ += 0x9E3779B97F4A7C15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // In [0, bound).
  int64_t Below(int64_t bound) {
    return static_cast<int64_t>(Next() % static_cast<uint64_t>(bound));
  }
  int Between(int low, int high) { return low + static_cast<int>(Below(high - low + 1)); }
  bool OneIn(int64_t n) { return Below(n) == 0; }
  // In (0, 1].
  double Unit() { return (static_cast<double>(Next() >> 11) + 1) * 0x1p-53; }
  // In [1, most], small ones more often: Zipf's law with exponent 1, continuous.
  int Zipf(int most);

 private:
  uint64_t state_;
};

}  // namespace sluice::sim
