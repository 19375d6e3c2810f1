#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/dtype.h"

namespace sluice::testing {

// Random weights in the stored form of a type, drawn as such and not rounded from floats: about a
// gigabyte a second and core. Values have mean 0 (half a step off for Q4_0, Q5_0, Q3_K, Q6_K and
// Q8_0, a twelfth of sigma for IQ4_NL, whose levels are not symmetric) and standard deviation
// `sigma`; scales differ from block to block by up to a quarter. For all types but F32. Immutable,
// thread-safe.
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
