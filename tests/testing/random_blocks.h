#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/dtype.h"

namespace sluice::testing {

// Random weights in the stored form of a type, drawn as such and not rounded from floats: about a
// gigabyte a second and core. Values have mean 0 (half a step off for Q4_0, Q5_0, Q6_K and Q8_0,
// whose levels are not symmetric) and standard deviation `sigma`; scales differ from block to
// block by up to a quarter. For F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K.
// Immutable, thread-safe.
class RandomBlocks {
 public:
  // Aborts for another type.
  RandomBlocks(kernels::DType type, float sigma);

  // Fills `out`, whole blocks (of floats: whole values). Equal seeds, equal bytes.
  void Fill(uint64_t seed, std::span<std::byte> out) const;

 private:
  void SetScales(uint64_t bits, std::byte* block) const;

  static constexpr size_t kNumScales = 16;
  kernels::DType type_;
  std::array<uint16_t, kNumScales> scales_{};    // f16
  std::array<uint16_t, kNumScales> minimums_{};  // f16; of the types that have them
  std::array<std::array<std::byte, 16>, kNumScales> sub_scales_{};  // of K quants, as stored
  std::vector<uint16_t> normals_;  // of F16 and BF16: the quantiles of a normal distribution
};

}  // namespace sluice::testing
