#pragma once

// Random cases for the tests that compare samplers: every parameter, many ties, logits that are not
// finite.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "kernels/ops.h"

namespace sluice::kernels {

// Rows, slots and logits for one launch.
struct Case {
  std::vector<float> logits;  // [rows, V]
  std::vector<SampleRow> rows;
  std::vector<uint32_t> mask;
  std::vector<SamplerParams> params;  // by slot
  std::vector<std::vector<int32_t>> prompts, outputs;
};

inline float RandomLogit(std::mt19937& random, int kind) {
  std::normal_distribution<float> normal;
  switch (kind) {
    case 0:
      return 3.0f * normal(random);
    case 1: {  // many ties, and zeros of both signs
      const float rounded = std::floor(2.0f * normal(random));
      return rounded == 0.0f && random() % 2 == 0 ? -0.0f : rounded;
    }
    case 2:
      return -1.5f;  // all equal
    case 3:
      return 1e37f * normal(random);
    case 4:
      return 30.0f * normal(random);
    default:
      return 1e-38f * normal(random);
  }
}

// One row of logits more, sometimes with one that is not finite.
inline void AppendRandomRow(std::mt19937& random, int64_t vocab_size, std::vector<float>& logits) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const int kind = static_cast<int>(random() % 6);
  const size_t begin = logits.size();
  for (int64_t i = 0; i < vocab_size; ++i) logits.push_back(RandomLogit(random, kind));
  if (random() % 40 == 0) {
    const float bad[] = {std::numeric_limits<float>::quiet_NaN(), kInf, -kInf};
    logits[begin + random() % static_cast<size_t>(vocab_size)] = bad[random() % 3];
  }
}

inline SamplerParams RandomParams(std::mt19937& random, int64_t vocab_size) {
  const auto one_in = [&](uint32_t n) { return random() % n == 0; };
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  constexpr float kInf = std::numeric_limits<float>::infinity();
  SamplerParams params;
  const float temperatures[] = {0.0f, 1e-6f, 1e-5f, 0.3f, 0.7f, 1.0f, 1.0f, 2.5f, 100.0f, 1e30f};
  params.temperature = temperatures[random() % 10];
  if (one_in(2)) params.top_k = 1 + static_cast<int32_t>(random() % (vocab_size + 2));
  if (one_in(4)) params.top_k = 1 + static_cast<int32_t>(random() % 5);
  if (one_in(3)) params.typical_p = std::max(1e-7f, unit(random));
  if (one_in(8)) params.typical_p = 0.99999994f;
  if (one_in(8)) params.typical_p = 0.25f * static_cast<float>(1 + random() % 3);
  if (one_in(2)) params.top_p = std::max(1e-7f, unit(random));
  if (one_in(8)) params.top_p = 0.99999994f;
  if (one_in(8)) params.top_p = 0.25f * static_cast<float>(1 + random() % 3);  // exact
  if (one_in(3)) params.min_p = unit(random) * unit(random);
  if (one_in(16)) params.min_p = 1.0f;
  if (one_in(3)) params.repetition_penalty = 0.5f + unit(random);
  if (one_in(3)) params.presence_penalty = 4.0f * unit(random) - 2.0f;
  if (one_in(3)) params.frequency_penalty = 4.0f * unit(random) - 2.0f;
  if (one_in(2)) params.penalty_last_n = 1 + static_cast<int32_t>(random() % 12);
  params.seed = one_in(4) ? 0 : one_in(4) ? ~uint64_t{0} : random();
  params.sequence_index = random() % 3;
  if (one_in(3)) {
    const uint32_t spacing = vocab_size < 1000 ? 5 : static_cast<uint32_t>(vocab_size / 200);
    for (int32_t token = 0; token < vocab_size; ++token) {
      if (!one_in(spacing)) continue;
      params.bias.push_back({token, one_in(4) ? -kInf : 6.0f * unit(random) - 3.0f});
    }
  }
  if (one_in(3)) {
    params.min_tokens = static_cast<int32_t>(random() % 8);
    for (int i = 0; i < 3; ++i) {
      params.banned_until_min.push_back(static_cast<int32_t>(random() % vocab_size));
    }
  }
  return params;
}

inline Case RandomCase(std::mt19937& random, int64_t vocab_size, int num_rows) {
  Case c;
  const int64_t mask_words = (vocab_size + 31) / 32;
  for (int r = 0; r < num_rows; ++r) {
    AppendRandomRow(random, vocab_size, c.logits);
    SampleRow row;
    row.logit_row = r;
    row.slot = r;
    row.position = static_cast<int32_t>(random() % 100000);
    row.num_top = static_cast<int32_t>(random() % 7) - 1;
    if (random() % 12 == 0) row.forced_token = static_cast<int32_t>(random() % vocab_size);
    if (random() % 4 == 0) {
      row.mask_row = static_cast<int32_t>(static_cast<int64_t>(c.mask.size()) / mask_words);
      const bool dense = random() % 2 == 0;
      for (int64_t word = 0; word < mask_words; ++word) {
        c.mask.push_back(dense ? random() | random() | random() : random() & random());
      }
    }
    c.rows.push_back(row);
    c.params.push_back(RandomParams(random, vocab_size));
    c.prompts.emplace_back();
    c.outputs.emplace_back();
    for (uint32_t i = 0; i < random() % 20; ++i) {
      c.prompts.back().push_back(static_cast<int32_t>(random() % vocab_size));
    }
    for (uint32_t i = 0; i < random() % 10; ++i) {
      c.outputs.back().push_back(static_cast<int32_t>(random() % vocab_size));
    }
  }
  std::shuffle(c.rows.begin(), c.rows.end(), random);
  return c;
}

}  // namespace sluice::kernels
