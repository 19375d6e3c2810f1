#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/ops.h"
#include "tests/kernels/sampling_fixture.h"

namespace sluice::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class SamplingStageTest : public ::testing::TestWithParam<Backend> {
 protected:
  Machine machine() const { return {GetParam(), CpuIsa::kAvx2, 1}; }

  // How often each token comes out over `count` positions.
  std::vector<int> Histogram(const std::vector<float>& logits, const SamplerParams& params,
                             int count) {
    Sampler sampler(machine(), static_cast<int64_t>(logits.size()));
    sampler.Reset(0, params);
    std::vector<SampleRow> rows(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) rows[static_cast<size_t>(i)].position = i;
    std::vector<int> histogram(logits.size());
    for (const SampledToken& sampled : sampler.Run(logits, rows)) {
      ++histogram[static_cast<size_t>(sampled.token)];
    }
    return histogram;
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, SamplingStageTest,
                         ::testing::Values(Backend::kRef, Backend::kCpu),
                         [](const auto& param) { return std::string(Name(param.param)); });

TEST_P(SamplingStageTest, DrawsFollowTheSoftmax) {
  const std::vector<float> logits = {0.3f, -1.0f, 2.0f, 1.1f, 0.0f, -2.5f, 1.9f, 0.7f, -0.4f, 1.0f};
  const int count = 100000;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{12345}, ~uint64_t{0}}) {
    for (const float temperature : {0.7f, 1.0f, 1.6f}) {
      SamplerParams params;
      params.seed = seed;
      params.temperature = temperature;
      const std::vector<int> histogram = Histogram(logits, params, count);
      double total = 0.0;
      for (const float logit : logits) total += std::exp(logit / temperature);
      double chi_square = 0.0;
      for (size_t i = 0; i < logits.size(); ++i) {
        const double expected = count * std::exp(logits[i] / temperature) / total;
        chi_square += (histogram[i] - expected) * (histogram[i] - expected) / expected;
      }
      // Nine degrees of freedom: above 33.7 in one run of 10,000, below 0.34 as seldom.
      EXPECT_LT(chi_square, 33.7) << "seed " << seed << " temperature " << temperature;
      EXPECT_GT(chi_square, 0.34) << "seed " << seed << " temperature " << temperature;
    }
  }
}

TEST_P(SamplingStageTest, SequencesOfOneSeedDiffer) {
  const std::vector<float> logits(1000, 0.0f);
  Sampler sampler(machine(), 1000);
  std::vector<int32_t> tokens;
  for (uint32_t index = 0; index < 4; ++index) {
    SamplerParams params;
    params.sequence_index = index;
    sampler.Reset(0, params);
    tokens.push_back(sampler.RunOne(logits).token);
  }
  std::sort(tokens.begin(), tokens.end());
  EXPECT_EQ(std::unique(tokens.begin(), tokens.end()), tokens.end());
}

TEST_P(SamplingStageTest, GreedyTakesTheLowestIdOfTies) {
  std::vector<float> logits(200, 1.0f);
  logits[70] = logits[130] = logits[199] = 5.0f;
  SamplerParams params;
  for (const float temperature : {0.0f, 1e-40f, 9.9e-6f}) {
    params.temperature = temperature;
    EXPECT_EQ(Histogram(logits, params, 20)[70], 20);
  }
}

TEST_P(SamplingStageTest, TopKKeepsTheLowerIdsOfTies) {
  std::vector<float> logits(200, 1.0f);
  logits[150] = 2.0f;
  SamplerParams params;
  params.top_k = 3;
  const std::vector<int> histogram = Histogram(logits, params, 500);
  EXPECT_EQ(histogram[0] + histogram[1] + histogram[150], 500);
  EXPECT_GT(std::min({histogram[0], histogram[1], histogram[150]}), 0);
  params.top_k = 1;
  EXPECT_EQ(Histogram(logits, params, 50)[150], 50);
}

TEST_P(SamplingStageTest, TopPKeepsTheShortestRunThatReachesIt) {
  // Eight equal tokens weigh an eighth each: half of the mass is exactly the first four.
  const std::vector<float> logits(8, 0.5f);
  SamplerParams params;
  params.top_p = 0.5f;
  std::vector<int> histogram = Histogram(logits, params, 800);
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(histogram[i] > 0, i < 4) << i;
  params.top_p = 0.50001f;
  histogram = Histogram(logits, params, 800);
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(histogram[i] > 0, i < 5) << i;
  params.top_p = 1e-9f;
  EXPECT_EQ(Histogram(logits, params, 50)[0], 50);
}

TEST_P(SamplingStageTest, TypicalPKeepsWhatIsAboutAsLikelyAsExpected) {
  // 0.4 and six times 0.1: the entropy, 1.75, is nearer to -log(0.1) = 2.30 than to -log(0.4) =
  // 0.92. The six equal ones come first, by id, then the best.
  std::vector<float> logits(7, std::log(0.1f));
  logits[3] = std::log(0.4f);
  SamplerParams params;
  params.typical_p = 0.35f;
  std::vector<int> histogram = Histogram(logits, params, 800);
  for (size_t i = 0; i < 7; ++i) EXPECT_EQ(histogram[i] > 0, i < 5 && i != 3) << i;
  params.typical_p = 0.65f;
  histogram = Histogram(logits, params, 1600);
  for (size_t i = 0; i < 7; ++i) EXPECT_GT(histogram[i], 0) << i;
  params.typical_p = 1e-9f;
  EXPECT_EQ(Histogram(logits, params, 50)[0], 50);
  // What comes after sees what it left: of the six alone, half the mass is three.
  params.typical_p = 0.58f;
  params.top_p = 0.5f;
  params.min_p = 1.0f;
  histogram = Histogram(logits, params, 800);
  for (size_t i = 0; i < 7; ++i) EXPECT_EQ(histogram[i] > 0, i < 3) << i;
  // And it sees what top-k left: of two tokens the better one, to which the mean is nearer.
  params = SamplerParams();
  params.top_k = 2;
  params.typical_p = 0.5f;
  EXPECT_EQ(Histogram(logits, params, 50)[3], 50);
}

TEST_P(SamplingStageTest, MinPIsRelativeToTheBest) {
  // Probabilities relative to the best: 1, exp(-1) = 0.37, exp(-2) = 0.14.
  const std::vector<float> logits = {3.0f, 5.0f, 4.0f};
  SamplerParams params;
  params.min_p = 0.3f;
  const std::vector<int> histogram = Histogram(logits, params, 300);
  EXPECT_EQ(histogram[0], 0);
  EXPECT_GT(std::min(histogram[1], histogram[2]), 0);
  params.min_p = 1.0f;
  EXPECT_EQ(Histogram(logits, params, 50)[1], 50);
}

TEST_P(SamplingStageTest, BiasAndBansDecideWhatIsLeft) {
  const std::vector<float> logits = {1.0f, 9.0f, 3.0f, 2.0f};
  Sampler sampler(machine(), 4);
  SamplerParams params;
  params.temperature = 0.0f;
  params.bias = {{1, -kInf}, {3, 1.5f}, {7, 100.0f}};  // 7 names no token
  sampler.Reset(0, params);
  EXPECT_EQ(sampler.RunOne(logits).token, 3);
  params.bias = {{0, -kInf}, {1, -kInf}, {2, -kInf}, {3, -kInf}};
  sampler.Reset(0, params);
  EXPECT_FALSE(sampler.RunOne(logits).finite);
}

TEST_P(SamplingStageTest, BansEndWithTheMinimumOfTokens) {
  const std::vector<float> logits = {1.0f, 9.0f, 3.0f};
  Sampler sampler(machine(), 3);
  SamplerParams params;
  params.temperature = 0.0f;
  params.min_tokens = 3;
  params.banned_until_min = {1, 12};
  sampler.Reset(0, params, {}, {2});
  EXPECT_EQ(sampler.RunOne(logits).token, 2);
  SampleRow scored;
  scored.forced_token = 1;
  EXPECT_EQ(sampler.RunOne(logits, scored).token, 1);  // scoring is no output
  EXPECT_EQ(sampler.RunOne(logits).token, 2);
  EXPECT_EQ(sampler.RunOne(logits).token, 1);
}

TEST_P(SamplingStageTest, PenaltiesFollowTheirFormulas) {
  Sampler sampler(machine(), 4);
  SamplerParams params;
  params.temperature = 0.0f;
  params.repetition_penalty = 2.0f;
  sampler.Reset(0, params, {1, 3});
  EXPECT_EQ(sampler.RunOne({2.0f, 3.9f, 1.0f, 3.0f}).token, 0);  // 3.9 / 2 < 2
  sampler.Reset(0, params, {1, 3});
  EXPECT_EQ(sampler.RunOne({1.9f, 3.9f, 1.0f, 3.0f}).token, 1);
  sampler.Reset(0, params, {1});
  EXPECT_EQ(sampler.RunOne({-1.9f, -1.0f, -8.0f, -8.0f}).token, 0);  // -1 * 2 < -1.9

  params = {};
  params.temperature = 0.0f;
  params.presence_penalty = 0.5f;
  params.frequency_penalty = 0.25f;
  // Token 1 twice in the output: -0.5 - 2 * 0.25; in the prompt it does not count.
  sampler.Reset(0, params, {0, 0, 0}, {1, 1});
  EXPECT_EQ(sampler.RunOne({1.0f, 1.99f, 0.0f, 0.0f}).token, 0);
  sampler.Reset(0, params, {0, 0, 0}, {1, 1});
  EXPECT_EQ(sampler.RunOne({1.0f, 2.01f, 0.0f, 0.0f}).token, 1);

  params = {};
  params.temperature = 0.0f;
  params.repetition_penalty = 2.0f;
  params.penalty_last_n = 2;
  sampler.Reset(0, params, {1, 2}, {3});  // the window is 2, 3
  EXPECT_EQ(sampler.RunOne({0.0f, 1.0f, 1.5f, 1.5f}).token, 1);
}

// Penalties near the ends of f32 make logits overflow or vanish. That is no fault of the logits: a
// token that is there comes out, with the log probability of the raw logits.
TEST_P(SamplingStageTest, ExtremeRepetitionPenaltiesGiveATokenAllTheSame) {
  const std::vector<float> mixed = {30.0f, -30.0f, 1e-30f, 29.0f, 0.0f, -2.0f};
  const std::vector<float> negative = {-19.0f, -20.0f, -21.0f, -30.0f, -40.0f, -50.0f};
  struct Case {
    const std::vector<float>& logits;
    float penalty;
    std::vector<int32_t> prompt;
    int32_t greedy;
  };
  const Case cases[] = {
      // Each positive logit grows to the largest float: the lowest id wins.
      {mixed, 1e-38f, {0, 1, 2, 3, 4, 5}, 0},
      {mixed, 1e-38f, {3}, 3},
      {mixed, 1e-38f, {1}, 0},  // -30 rises to almost 0, below 30
      // Positive ones vanish, negative ones fall to the lowest float.
      {mixed, 1e38f, {0, 1, 2, 3, 4, 5}, 0},
      {mixed, 1e38f, {0, 3}, 2},
      {mixed, 1e38f, {1, 5}, 0},
      {negative, 1e38f, {0, 1, 2, 3, 4, 5}, 0},
      {negative, 1e38f, {0, 1, 2, 3, 4}, 5},
  };
  Sampler sampler(machine(), 6);
  for (const Case& one : cases) {
    SCOPED_TRACE(one.penalty);
    for (const float temperature : {0.0f, 1e-4f, 0.7f, 100.0f}) {
      SamplerParams params;
      params.temperature = temperature;
      params.repetition_penalty = one.penalty;
      params.presence_penalty = 2.0f;
      params.frequency_penalty = -2.0f;
      sampler.Reset(0, params, one.prompt, /*output=*/{});
      SampleRow row;
      row.num_top = 1;
      const SampledToken sampled = sampler.RunOne(one.logits, row);
      EXPECT_TRUE(sampled.finite) << temperature;
      ASSERT_GE(sampled.token, 0) << temperature;
      ASSERT_LT(sampled.token, 6) << temperature;
      if (temperature == 0.0f) {
        EXPECT_EQ(sampled.token, one.greedy);
      }
      EXPECT_TRUE(std::isfinite(sampled.logprob)) << temperature;
      EXPECT_EQ(sampled.top[0].token, 0) << temperature;
    }
  }
}

TEST_P(SamplingStageTest, WindowForgetsWhatLeftIt) {
  Sampler sampler(machine(), 8);
  SamplerParams params;
  params.presence_penalty = 1.0f;
  params.penalty_last_n = 3;
  params.temperature = 0.0f;
  sampler.Reset(0, params, {0, 1}, {2, 2});
  // Window 1 2 2: token 1 from the prompt, token 2 twice from the output.
  ASSERT_EQ(sampler.slot(0).counts().size(), 2u);
  std::vector<float> logits(8, 0.0f);
  for (const size_t best : {5, 6, 7}) {
    std::vector<float> step = logits;
    step[best] = 9.0f;
    EXPECT_EQ(sampler.RunOne(step).token, static_cast<int32_t>(best));
  }
  std::vector<int32_t> left;
  for (const TokenCount& count : sampler.slot(0).counts()) {
    EXPECT_EQ(count.seen, 1);
    EXPECT_EQ(count.output, 1);
    left.push_back(count.token);
  }
  std::sort(left.begin(), left.end());
  EXPECT_EQ(left, (std::vector<int32_t>{5, 6, 7}));
}

TEST_P(SamplingStageTest, NonFiniteLogitsAreSaidSo) {
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const size_t at : {0, 15, 16, 64, 99}) {
      std::vector<float> logits(100, 1.0f);
      logits[at] = bad;
      for (const float temperature : {0.0f, 1.0f}) {
        Sampler sampler(machine(), 100);
        SamplerParams params;
        params.temperature = temperature;
        sampler.Reset(0, params);
        EXPECT_FALSE(sampler.RunOne(logits).finite) << bad << " at " << at;
      }
    }
  }
}

TEST_P(SamplingStageTest, LogprobsAreOfTheRawLogits) {
  const std::vector<float> logits = {1.0f, 3.0f, 2.0f, 3.0f, -4.0f};
  double total = 0.0;
  for (const float logit : logits) total += std::exp(logit);
  Sampler sampler(machine(), 5);
  SamplerParams params;
  params.temperature = 0.0f;
  params.bias = {{2, 50.0f}};
  sampler.Reset(0, params);
  SampleRow row;
  row.num_top = 3;
  const SampledToken sampled = sampler.RunOne(logits, row);
  EXPECT_EQ(sampled.token, 2);
  EXPECT_NEAR(sampled.logprob, std::log(std::exp(2.0) / total), 1e-6);
  ASSERT_EQ(sampled.top.size(), 3u);
  EXPECT_EQ(sampled.top[0].token, 1);
  EXPECT_EQ(sampled.top[1].token, 3);
  EXPECT_EQ(sampled.top[2].token, 2);
  EXPECT_NEAR(sampled.top[0].logprob, std::log(std::exp(3.0) / total), 1e-6);
  row.forced_token = 4;
  row.num_top = 0;
  const SampledToken scored = sampler.RunOne(logits, row);
  EXPECT_EQ(scored.token, 4);
  EXPECT_TRUE(scored.top.empty());
  EXPECT_NEAR(scored.logprob, std::log(std::exp(-4.0) / total), 1e-6);
}

TEST(SamplingTest, SlotsNeedARealSize) {
  Exec exec({});
  EXPECT_EQ(SamplerSlots::Create(exec, 0, 10).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SamplerSlots::Create(exec, 1, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace sluice::kernels
