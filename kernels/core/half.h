#pragma once

// IEEE 754 binary16 and bfloat16 in plain integer arithmetic, for code that is compiled for any
// x86-64. Not for files compiled for one instruction set: an inline function of theirs could be
// linked into the others.

#include <bit>
#include <cstdint>

namespace sluice::kernels {

inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = half & 0x7fffu;
  // Shifted into place, the exponent is 112 too small; one exact product by 2^112 repairs it, for
  // subnormals too.
  float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  if (magnitude >= 0x7c00u) {
    value = std::bit_cast<float>(0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

// Round to nearest even; beyond 65504 becomes infinite.
inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {  // NaN stays one, quiet
    return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  }
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: 0.5 has the ulp 2^-24, so the sum rounds to it
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(sum) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u;
  return static_cast<uint16_t>(sign | rounded >> 13);
}

inline float BFloat16ToFloat(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

}  // namespace sluice::kernels
