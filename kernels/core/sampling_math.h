#pragma once

// The arithmetic that decides a token, as scalar functions: the definition that every backend
// reproduces bit for bit. All f32 operations are IEEE 754, round to nearest even, fused only where
// `fma` is written; integers are exact, so no sum depends on its order.
//
//   y     (l - max) * (1 / temperature), max over the row after mask, bans, bias and penalties
//   w     floor(2^40 * exp(y)), see SampleWeight
//   Z     sum of w, below 2^60 for 2^20 tokens
//   top-k k best by logit, ties by lower id
//   typical-p
//         with a = rint(-y * 2^16) and A = floor(sum(w * a) / sum(w)) over the tokens that are left
//         and weigh more than 0: the shortest run of those in order of rising |a - A|, ties by
//         lower id, whose w add up to at least ceil(typical_p * sum(w)). |a - A| is how far a
//         token's information is from the entropy (Meister et al., arXiv 2202.00666): log Z cancels
//   top-p the shortest run of tokens in order of falling w, ties by lower id, whose w add up to at
//         least ceil(top_p * Z), Z over what typical-p left
//   min-p those with w >= ceil(min_p * W), W the weight of the best token that is left: 2^40 unless
//         typical-p took it
//   draw  with Z' the sum over what is left and b the SampleBits: the first token in ascending id
//         at which the running sum exceeds floor(b * Z' / 2^64)

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/core/sample_weight.h"
#include "kernels/ops.h"

namespace sluice::kernels {

inline constexpr float kGreedyTemperature = 1e-5f;  // below: arg-max

// A fraction in [0, 1] as 53 bits of fixed point.
inline uint64_t FixedFraction(float fraction) {
  return static_cast<uint64_t>(static_cast<double>(fraction) * 0x1p53);
}
// ceil(fraction * total) of that.
inline uint64_t CeilFraction(float fraction, uint64_t total) {
  using Wide = unsigned __int128;
  return static_cast<uint64_t>(
      (Wide{FixedFraction(fraction)} * total + ((uint64_t{1} << 53) - 1)) >> 53);
}

// -y in units of 2^-16, of a token whose weight is not 0: below 2^22.
inline int32_t Surprise(float logit, float max, float inverse_temperature) {
  const float y = (logit - max) * inverse_temperature;
  return static_cast<int32_t>(std::nearbyint(y * -0x1p16f));
}

// The sums of typical-p: exact, so that no order matters.
struct SurpriseSum {
  uint64_t weight = 0;
  unsigned __int128 weighted = 0;

  void Add(uint64_t token_weight, int32_t surprise) {
    weight += token_weight;
    weighted += static_cast<unsigned __int128>(token_weight) * static_cast<uint32_t>(surprise);
  }
  int32_t Mean() const { return static_cast<int32_t>(weighted / weight); }
};

// floor(bits * total / 2^64), below total.
inline uint64_t DrawTarget(uint64_t bits, uint64_t total) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(bits) * total >> 64);
}

// A logit after penalties: repetition when the token was seen in the window, presence and frequency
// by its count in the window's output. Each operation rounds for itself.
inline float PenalizedLogit(float logit, const SamplerParams& params, bool seen,
                            int32_t output_count) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  if (logit < -kLargest) return logit;  // masked or banned, and stays so
  if (seen) {
    logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  }
  if (output_count > 0) {
    logit -= params.presence_penalty;
    const float by_count = params.frequency_penalty * static_cast<float>(output_count);
    logit -= by_count;
  }
  // A legal penalty near 0 overflows; that is no fault of the logits. NaN stays NaN.
  if (logit > kLargest) return kLargest;
  return logit < -kLargest ? -kLargest : logit;
}

// log of a token's probability: its raw logit, the largest one of the row, and the row's Z at
// temperature 1.
inline float LogprobOf(float logit, float max, uint64_t total) {
  return static_cast<float>(static_cast<double>(logit) - static_cast<double>(max) -
                            std::log(static_cast<double>(total) * 0x1p-40));
}

}  // namespace sluice::kernels
