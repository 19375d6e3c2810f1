#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/core/sampling_math.h"
#include "kernels/cpu/sampling_scan.h"
#include "kernels/ops.h"
#include "tests/kernels/sampling_cases.h"
#include "tests/kernels/sampling_fixture.h"

namespace sluice::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(SampleWeightTest, IsTheExponentialInFixedPoint) {
  EXPECT_EQ(SampleWeight(0.0f), kWeightOne);
  EXPECT_EQ(SampleWeight(-0.0f), kWeightOne);
  EXPECT_EQ(SampleWeight(-kInf), 0u);
  EXPECT_EQ(SampleWeight(-40.0f), 0u);
  EXPECT_EQ(SampleWeight(-28.0f), 0u);  // exp(-28) < 2^-40
  EXPECT_GT(SampleWeight(-27.7f), 0u);
  for (float y = -0x1p-30f; y > -41.0f; y = y * 1.0001f - 1e-9f) {
    const double exact = std::exp(static_cast<double>(y)) * 0x1p40;
    const double got = static_cast<double>(SampleWeight(y));
    ASSERT_LE(got, 0x1p40) << y;
    ASSERT_LE(std::abs(got - exact), 1.0 + exact * 0x1p-22) << y;
  }
}

TEST(SampleWeightTest, VectorsGiveTheScalarsBits) {
  std::vector<const cpu::SamplingKernels*> all = {&cpu::kSamplingAvx2};
  if (HasAvx512()) all.push_back(&cpu::kSamplingAvx512);
  const uint32_t seed = 99;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> spread(-45.0f, 0.0f);
  for (int round = 0; round < 4000; ++round) {
    const int64_t n = 1 + static_cast<int64_t>(random() % cpu::kSampleBlock);
    const float max = spread(random) * 3.0f;
    const float inverse = round % 2 == 0 ? 1.0f : 1.0f / (0.01f + static_cast<float>(round));
    std::vector<float> logits;
    uint64_t total = 0;
    for (int64_t i = 0; i < n; ++i) {
      logits.push_back(max + spread(random));
      if (random() % 16 == 0) logits.back() = -kInf;
      if (random() % 16 == 0) logits.back() = max;
      total += SampleWeight((logits.back() - max) * inverse);
    }
    for (const cpu::SamplingKernels* kernels : all) {
      uint64_t weights[cpu::kSampleBlock];
      uint64_t block_sum = 0;
      kernels->block_weights(logits.data(), n, max, inverse, weights);
      for (int64_t i = 0; i < n; ++i) {
        ASSERT_EQ(weights[i], SampleWeight((logits[static_cast<size_t>(i)] - max) * inverse))
            << logits[static_cast<size_t>(i)] << " below " << max;
      }
      ASSERT_EQ(kernels->sum_blocks(logits.data(), n, max, inverse, &block_sum), total);
      ASSERT_EQ(block_sum, total);
    }
  }
}

TEST(SampleWeightTest, FractionsRoundUpExactly) {
  EXPECT_EQ(CeilFraction(1.0f, 12345u), 12345u);
  EXPECT_EQ(CeilFraction(0.0f, 12345u), 0u);
  EXPECT_EQ(CeilFraction(0.5f, 7u), 4u);
  EXPECT_EQ(CeilFraction(0.5f, 8u), 4u);
  const uint64_t large = uint64_t{1} << 60;
  EXPECT_EQ(CeilFraction(0.25f, large), large / 4);
  EXPECT_EQ(CeilFraction(0.25f, large + 1), large / 4 + 1);
  EXPECT_EQ(DrawTarget(~uint64_t{0}, large), large - 1);
  EXPECT_EQ(DrawTarget(0, large), 0u);
}

// ---------------------------------------------------------------- all stages against the strict
// path

// Samples every row of every case, two steps, on all machines; returns how many rows were compared.
int CompareMachines(uint32_t seed, int64_t vocab_size, int num_cases) {
  const std::vector<Machine> machines = AllMachines();
  std::vector<std::unique_ptr<Sampler>> samplers;
  for (const Machine& machine : machines) {
    samplers.push_back(std::make_unique<Sampler>(machine, vocab_size));
  }
  std::mt19937 random(seed);
  int compared = 0;
  for (int i = 0; i < num_cases; ++i) {
    Case c = RandomCase(random, vocab_size, 8);
    for (int step = 0; step < 2; ++step) {
      std::vector<SampledToken> strict;
      for (size_t m = 0; m < machines.size(); ++m) {
        for (int slot = 0; step == 0 && slot < 8; ++slot) {
          const size_t s = static_cast<size_t>(slot);
          samplers[m]->Reset(slot, c.params[s], c.prompts[s], c.outputs[s]);
        }
        const std::vector<SampledToken> out = samplers[m]->Run(c.logits, c.rows, c.mask);
        if (m == 0) strict = out;
        for (size_t r = 0; r < out.size(); ++r) {
          EXPECT_TRUE(Same(out[r], strict[r]))
              << "seed " << seed << " vocabulary " << vocab_size << " case " << i << " step "
              << step << " row " << r << " machine " << m;
          if (::testing::Test::HasFailure()) return compared;
          ++compared;
        }
      }
      for (SampleRow& row : c.rows) ++row.position;
    }
  }
  return compared;
}

TEST(SamplingAgreementTest, AgreesWithStrictPathOnRandomCases) {
  int compared = 0;
  uint32_t seed = 4711;
  for (const int64_t vocab_size : {1, 2, 15, 16, 17, 63, 64, 65, 129, 1000}) {
    compared += CompareMachines(seed++, vocab_size, vocab_size < 200 ? 60 : 40);
    if (HasFailure()) return;
  }
  EXPECT_GE(compared, 20000);
}

TEST(SamplingAgreementTest, AgreesWithStrictPathOnLargeVocabularies) {
  EXPECT_GT(CompareMachines(11, 49152, 3), 0);
  EXPECT_GT(CompareMachines(12, 151936, 1), 0);
}

TEST(SamplingAgreementTest, BatchedEqualsAlone) {
  const uint32_t seed = 77;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const int64_t vocab_size = 500;
  for (const Machine& machine : AllMachines()) {
    for (int round = 0; round < 20; ++round) {
      const Case c = RandomCase(random, vocab_size, 8);
      Sampler together(machine, vocab_size);
      for (int slot = 0; slot < 8; ++slot) {
        const size_t s = static_cast<size_t>(slot);
        together.Reset(slot, c.params[s], c.prompts[s], c.outputs[s]);
      }
      const std::vector<SampledToken> out = together.Run(c.logits, c.rows, c.mask);
      for (size_t r = 0; r < c.rows.size(); ++r) {
        const size_t s = static_cast<size_t>(c.rows[r].slot);
        Sampler alone(machine, vocab_size, 1);
        alone.Reset(0, c.params[s], c.prompts[s], c.outputs[s]);
        SampleRow row = c.rows[r];
        row.slot = 0;
        ASSERT_TRUE(Same(alone.Run(c.logits, {row}, c.mask)[0], out[r])) << "row " << r;
      }
    }
  }
}

// A sequence that is put out of its slot at any step and back in goes on as if nothing happened.
TEST(SamplingAgreementTest, ResetReplaysASequence) {
  const uint32_t seed = 31;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const int64_t vocab_size = 40;
  const int num_steps = 40;
  std::vector<std::vector<float>> logits(num_steps);
  for (std::vector<float>& row : logits) {
    for (int64_t i = 0; i < vocab_size; ++i) row.push_back(RandomLogit(random, 0));
  }
  SamplerParams params;
  params.seed = 5;
  params.temperature = 1.3f;
  params.repetition_penalty = 1.4f;
  params.presence_penalty = 0.8f;
  params.frequency_penalty = 0.6f;
  params.min_tokens = 20;
  params.banned_until_min = {1, 2, 3};
  const std::vector<int32_t> prompt = {3, 9, 9, 27, 30};
  for (const int32_t window : {0, 4, 17}) {
    params.penalty_last_n = window;
    for (const Machine& machine : AllMachines()) {
      std::vector<int32_t> whole;
      for (int reset_at = -1; reset_at < num_steps; ++reset_at) {
        Sampler sampler(machine, vocab_size, 2);
        sampler.Reset(0, params, prompt);
        std::vector<int32_t> output;
        SampleRow row;
        for (int step = 0; step < num_steps; ++step) {
          if (step == reset_at) {
            sampler.Reset(1, params, prompt, output);
            row.slot = 1;
          }
          row.position = static_cast<int32_t>(prompt.size()) + step;
          output.push_back(sampler.RunOne(logits[static_cast<size_t>(step)], row).token);
        }
        if (reset_at < 0) whole = output;
        ASSERT_EQ(output, whole) << "reset at step " << reset_at << ", window " << window;
      }
    }
  }
}

}  // namespace
}  // namespace sluice::kernels
