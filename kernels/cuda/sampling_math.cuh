#pragma once

// kernels/core/sampling_math.h on the device, bit for bit: every rounding is written out, so the
// flags of the compiler change nothing.

#include <cstdint>

#include "kernels/core/sample_weight.h"
#include "kernels/cuda/sampling_kernels.h"

namespace sluice::kernels::cuda {

__device__ __forceinline__ float negative_infinity() { return __uint_as_float(0xff800000u); }

// The order of keys is that of the logits; -0 counts as 0. The smallest key is 0x007fffff, of
// -infinity; +infinity and NaN have the keys from kHopelessKey up.
inline constexpr uint32_t kLowestKey = 0x007fffffu;
inline constexpr uint32_t kHopelessKey = 0xff800000u;

__device__ __forceinline__ uint32_t logit_key(float logit) {
  const uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0f));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float key_logit(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ bool is_finite(float x) {
  return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

// y <= 0 or -infinity; see SampleWeight.
__device__ __forceinline__ uint64_t sample_weight(float y) {
  constexpr float c0 = kExpPoly[0], c1 = kExpPoly[1], c2 = kExpPoly[2];
  constexpr float c3 = kExpPoly[3], c4 = kExpPoly[4], c5 = kExpPoly[5];
  if (!(y > kLowestExponent)) return 0;
  // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits:
  // two additions in place of two conversions, which run at half the rate.
  const float shifted = __fadd_rn(__fmul_rn(y, kLog2E), 0x1.8p23f);
  const float n = __fsub_rn(shifted, 0x1.8p23f);
  const int shift = 0x4b400000 - __float_as_int(shifted);  // -n
  float r = __fmaf_rn(n, kMinusLn2High, y);
  r = __fmaf_rn(n, kMinusLn2Low, r);
  float p = __fmaf_rn(c0, r, c1);
  p = __fmaf_rn(p, r, c2);
  p = __fmaf_rn(p, r, c3);
  p = __fmaf_rn(p, r, c4);
  p = __fmaf_rn(p, r, c5);
  p = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
  const uint64_t mantissa = __float2uint_rz(__fmul_rn(p, 0x1p24f));
  return mantissa << 16 >> shift;
}

// The weight of a logit at or below max.
__device__ __forceinline__ uint64_t logit_weight(float logit, float max,
                                                 float inverse_temperature) {
  return sample_weight(__fmul_rn(__fsub_rn(logit, max), inverse_temperature));
}

// At least the weight of any logit at or below `logit`, 0 only when they all weigh 0. The
// polynomial is monotone but for its relative error of 2^-22.
__device__ __forceinline__ uint64_t weight_bound(float logit, float max,
                                                 float inverse_temperature) {
  const float y = __fmul_rn(__fsub_rn(logit, max), inverse_temperature);
  if (!(y > -28.5f)) return 0;  // 2^40 exp(-28.5) < 0.47
  const uint64_t weight = sample_weight(y);
  return weight + (weight >> 18) + 1;
}

// See Surprise: of a token whose weight is not 0.
__device__ __forceinline__ int32_t surprise(float logit, float max, float inverse_temperature) {
  const float y = __fmul_rn(__fsub_rn(logit, max), inverse_temperature);
  return __float2int_rn(__fmul_rn(y, -0x1p16f));
}

// ceil(fraction * total) for a fraction of 53 bits of fixed point; see CeilFraction.
__device__ __forceinline__ uint64_t ceil_fraction(uint64_t fixed, uint64_t total) {
  constexpr uint64_t kBelowOne = (uint64_t{1} << 53) - 1;
  const uint64_t low = fixed * total;
  const uint64_t sum = low + kBelowOne;
  const uint64_t high = __umul64hi(fixed, total) + (sum < low ? 1 : 0);
  return high << 11 | sum >> 53;
}

// floor(bits * total / 2^64).
__device__ __forceinline__ uint64_t draw_target(uint64_t bits, uint64_t total) {
  return __umul64hi(bits, total);
}

// See PenalizedLogit.
__device__ __forceinline__ float penalized_logit(float logit, const SlotState& state,
                                                 WindowCount count) {
  constexpr float kLargest = 3.402823466e38f;
  if (logit < -kLargest) return logit;
  if (count.seen > 0) {
    logit = logit > 0.0f ? __fdiv_rn(logit, state.repetition_penalty)
                         : __fmul_rn(logit, state.repetition_penalty);
  }
  if (count.output > 0) {
    logit = __fsub_rn(logit, state.presence_penalty);
    logit = __fsub_rn(logit, __fmul_rn(state.frequency_penalty, __int2float_rn(count.output)));
  }
  if (logit > kLargest) return kLargest;
  return logit < -kLargest ? -kLargest : logit;
}

// Draw 0 of SampleBits (kernels/core/philox.h).
__device__ __forceinline__ uint64_t sample_bits(uint64_t seed, uint32_t sequence_index,
                                                int32_t position) {
  uint32_t c0 = static_cast<uint32_t>(position), c1 = sequence_index, c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t a_high = __umulhi(0xD2511F53u, c0), a_low = 0xD2511F53u * c0;
    const uint32_t b_high = __umulhi(0xCD9E8D57u, c2), b_low = 0xCD9E8D57u * c2;
    c0 = b_high ^ c1 ^ k0;
    c1 = b_low;
    c2 = a_high ^ c3 ^ k1;
    c3 = a_low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<uint64_t>(c1) << 32 | c0;
}

}  // namespace sluice::kernels::cuda
