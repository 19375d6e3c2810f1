#pragma once

// The weight of a token: floor(2^40 * exp(y)), by one FMA-only polynomial that every backend
// reproduces bit for bit. Part of the definition in sampling_math.h; apart from it because the
// files compiled for one instruction set take its constants and nothing else.

#include <cmath>
#include <cstdint>

namespace sluice::kernels {

inline constexpr uint64_t kWeightOne = uint64_t{1} << 40;
inline constexpr float kLowestExponent = -40.0f;  // any y from here down weighs 0

// exp(y) = 2^n * p with n = rint(y / ln 2) and p in [0.70, 1.42] by the polynomial of Cephes' expf
// (relative error below 2^-23). p * 2^24 is an integer because an f32 has 24 bits, so the weight is
// that integer times 2^16, shifted right by -n.
inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kMinusLn2High = -0.693359375f;
inline constexpr float kMinusLn2Low = 2.12194440e-4f;
inline constexpr float kExpPoly[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                      4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

// y <= 0 or -infinity.
inline uint64_t SampleWeight(float y) {
  if (!(y > kLowestExponent)) return 0;
  const float n = std::nearbyint(y * kLog2E);
  float r = std::fma(n, kMinusLn2High, y);
  r = std::fma(n, kMinusLn2Low, r);
  float p = kExpPoly[0];
  for (int i = 1; i < 6; ++i) p = std::fma(p, r, kExpPoly[i]);
  p = std::fma(p, r * r, r) + 1.0f;
  const uint64_t mantissa = static_cast<uint64_t>(p * 0x1p24f);
  return mantissa << 16 >> static_cast<int>(-n);
}

}  // namespace sluice::kernels
