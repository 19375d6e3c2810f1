#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <vector>

#include "kernels/core/philox.h"
#include "kernels/core/sampler_slots.h"
#include "kernels/core/sampling_math.h"
#include "kernels/ref/ref_ops.h"

namespace sluice::kernels::ref {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Candidate {
  int32_t token;
  float logit;
  uint64_t weight;
};

// Logits after mask, bans, bias and penalties.
std::vector<float> AdjustedLogits(const float* logits, int64_t vocab_size, const uint32_t* mask,
                                  const SamplerSlot& slot) {
  std::vector<float> adjusted(logits, logits + vocab_size);
  for (int64_t i = 0; mask != nullptr && i < vocab_size; ++i) {
    if ((mask[i / 32] >> (i % 32) & 1u) == 0) adjusted[static_cast<size_t>(i)] = -kInfinity;
  }
  if (slot.below_min_tokens()) {
    for (const int32_t token : slot.params().banned_until_min) {
      adjusted[static_cast<size_t>(token)] = -kInfinity;
    }
  }
  for (const TokenBias& bias : slot.params().bias) {
    adjusted[static_cast<size_t>(bias.token)] += bias.bias;
  }
  for (const TokenCount& count : slot.counts()) {
    float& logit = adjusted[static_cast<size_t>(count.token)];
    logit = PenalizedLogit(logit, slot.params(), count.seen > 0, count.output);
  }
  return adjusted;
}

// All tokens, best logit first, ties by lower id.
std::vector<Candidate> Ranked(const std::vector<float>& logits) {
  std::vector<Candidate> ranked;
  for (size_t i = 0; i < logits.size(); ++i) {
    ranked.push_back({static_cast<int32_t>(i), logits[i], 0});
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
  return ranked;
}

uint64_t TotalWeight(const std::vector<Candidate>& candidates) {
  uint64_t total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  return total;
}

void KeepTopP(float top_p, std::vector<Candidate>& candidates) {
  const uint64_t need = std::max<uint64_t>(1, CeilFraction(top_p, TotalWeight(candidates)));
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
  });
  uint64_t sum = 0;
  size_t kept = 0;
  while (sum < need) sum += candidates[kept++].weight;
  candidates.resize(kept);
}

void KeepTypical(float typical_p, float max, float inverse_temperature,
                 std::vector<Candidate>& candidates) {
  std::erase_if(candidates, [](const Candidate& c) { return c.weight == 0; });
  const auto surprise = [&](const Candidate& c) {
    return Surprise(c.logit, max, inverse_temperature);
  };
  SurpriseSum sum;
  for (const Candidate& candidate : candidates) sum.Add(candidate.weight, surprise(candidate));
  const int32_t mean = sum.Mean();
  std::sort(candidates.begin(), candidates.end(), [&](const Candidate& a, const Candidate& b) {
    const int32_t distance_a = std::abs(surprise(a) - mean);
    const int32_t distance_b = std::abs(surprise(b) - mean);
    return distance_a != distance_b ? distance_a < distance_b : a.token < b.token;
  });
  const uint64_t need = std::max<uint64_t>(1, CeilFraction(typical_p, sum.weight));
  uint64_t kept_weight = 0;
  size_t kept = 0;
  while (kept_weight < need) kept_weight += candidates[kept++].weight;
  candidates.resize(kept);
}

int32_t Choose(std::vector<Candidate> candidates, const SamplerParams& params, int32_t position) {
  if (params.temperature < kGreedyTemperature) return candidates[0].token;
  const float max = candidates[0].logit;
  const float inverse_temperature = 1.0f / params.temperature;
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < candidates.size()) {
    candidates.resize(static_cast<size_t>(params.top_k));
  }
  for (Candidate& candidate : candidates) {
    candidate.weight = SampleWeight((candidate.logit - max) * inverse_temperature);
  }
  if (params.typical_p < 1.0f) KeepTypical(params.typical_p, max, inverse_temperature, candidates);
  if (params.top_p < 1.0f) KeepTopP(params.top_p, candidates);
  uint64_t best = 0;
  for (const Candidate& candidate : candidates) best = std::max(best, candidate.weight);
  const uint64_t least = CeilFraction(std::min(params.min_p, 1.0f), best);
  std::erase_if(candidates, [&](const Candidate& c) { return c.weight < least; });
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  const uint64_t bits = SampleBits(params.seed, params.sequence_index, position, 0);
  const uint64_t target = DrawTarget(bits, TotalWeight(candidates));
  uint64_t sum = 0;
  for (const Candidate& candidate : candidates) {
    sum += candidate.weight;
    if (sum > target) return candidate.token;
  }
  return -1;  // not reached: target < the sum of all
}

void FillLogprobs(const std::vector<float>& logits, const SampleRow& row, SampledToken& out) {
  std::vector<Candidate> ranked = Ranked(logits);
  const float max = ranked[0].logit;
  uint64_t total = 0;
  for (const Candidate& candidate : ranked) total += SampleWeight(candidate.logit - max);
  out.logprob = LogprobOf(logits[static_cast<size_t>(out.token)], max, total);
  for (int32_t i = 0; i < row.num_top && static_cast<size_t>(i) < ranked.size(); ++i) {
    const Candidate& candidate = ranked[static_cast<size_t>(i)];
    out.top.push_back({candidate.token, LogprobOf(candidate.logit, max, total)});
  }
}

SampledToken SampleOne(const float* logits, int64_t vocab_size, const uint32_t* mask,
                       const SamplerSlot& slot, const SampleRow& row) {
  SampledToken out;
  const std::vector<float> raw(logits, logits + vocab_size);
  out.finite = std::all_of(raw.begin(), raw.end(), [](float l) { return std::isfinite(l); });
  if (!out.finite) return out;
  if (row.forced_token >= 0) {
    out.token = row.forced_token;
  } else {
    const std::vector<float> adjusted = AdjustedLogits(logits, vocab_size, mask, slot);
    const auto hopeless = [](float l) { return std::isnan(l) || l == kInfinity; };
    const bool all_banned =
        std::all_of(adjusted.begin(), adjusted.end(), [](float l) { return l == -kInfinity; });
    out.finite = !all_banned && std::none_of(adjusted.begin(), adjusted.end(), hopeless);
    if (!out.finite) return out;
    out.token = Choose(Ranked(adjusted), slot.params(), row.position);
  }
  if (row.num_top >= 0) FillLogprobs(raw, row, out);
  return out;
}

}  // namespace

void Sample(Exec& exec, ConstMatrixF32 logits, const SampleArgs& args, SamplerSlots::Table& table,
            std::span<SampledToken> out) {
  const int64_t mask_words = (logits.cols + 31) / 32;
  for (size_t i = 0; i < args.rows.size(); ++i) {
    const SampleRow& row = args.rows[i];
    const uint32_t* mask = row.mask_row < 0 ? nullptr : args.mask + row.mask_row * mask_words;
    out[i] = SampleOne(logits.row(row.logit_row), logits.cols, mask,
                       table.slots[static_cast<size_t>(row.slot)], row);
  }
  // All rows see the state from before the step, whatever their order.
  for (size_t i = 0; i < args.rows.size(); ++i) {
    const SampleRow& row = args.rows[i];
    if (row.forced_token < 0 && out[i].finite) {
      table.slots[static_cast<size_t>(row.slot)].Advance(out[i].token);
    }
  }
}

}  // namespace sluice::kernels::ref
