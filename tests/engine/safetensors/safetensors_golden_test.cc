// Directories that Hugging Face saved (tests/golden/make_safetensors.py) against what transformers
// computes from them. Bounds as docs/numerics.md gives them.

#include <algorithm>
#include <cmath>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "tests/testing/model_probe.h"
#include "tests/testing/npy.h"
#include "tests/testing/tally.h"

namespace sluice {
namespace {

constexpr double kStrictError = 1e-3;
constexpr double kCpuError = 0.02;
constexpr double kMargin = 0.005;
const std::string kGolden = std::string(SLUICE_GOLDEN_DIR) + "/safetensors";

std::vector<nlohmann::json> Models() {
  std::ifstream stream(kGolden + "/manifest.json");
  std::vector<nlohmann::json> models;
  for (nlohmann::json& model : nlohmann::json::parse(stream)) {
    for (const char* other : {"texts", "variants"}) model.erase(other);  // not of this test
    models.push_back(std::move(model));
  }
  return models;
}

class SafetensorsGoldenTest : public ::testing::TestWithParam<nlohmann::json> {
 protected:
  testing::Tally rows_of_logits_{{"file formats/safetensors"}, "rows of logits"};
  testing::Tally best_tokens_{{"file formats/safetensors"}, "best tokens"};

  // Of the logits computed with `options`; also compares best tokens where they are sure.
  double LargestError(const testing::ProbeOptions& options, double bound) {
    const std::string directory = GetParam()["directory"];
    const auto runner = testing::OpenProbe(kGolden + "/" + directory, options);
    const auto tokens = GetParam()["ids"].get<std::vector<engine::TokenId>>();
    const testing::NpyArray expected =
        testing::LoadNpy(kGolden + "/" + GetParam()["logits"].get<std::string>());
    const std::vector<float> actual = testing::AllLogits(*runner, tokens, 7);
    EXPECT_EQ(actual.size(), expected.values.size());
    if (actual.size() != expected.values.size()) return INFINITY;
    const size_t vocab = actual.size() / tokens.size();
    double largest = 0;
    for (size_t begin = 0; begin < actual.size(); begin += vocab) {
      bool within = true;
      for (size_t i = begin; i < begin + vocab; ++i) {
        const double error = std::abs(double{actual[i]} - expected.values[i]);
        within = within && error <= bound;
        if (!(error <= largest)) largest = error;
      }
      rows_of_logits_.Add(within);
    }
    size_t sure = 0;
    for (size_t position = 0; position < tokens.size(); ++position) {
      const std::span<const float> row =
          std::span(expected.values).subspan(position * vocab, vocab);
      const size_t best = testing::ArgMax(row);
      float second = -INFINITY;
      for (size_t i = 0; i < vocab; ++i) {
        if (i != best) second = std::max(second, row[i]);
      }
      if (row[best] - second <= kMargin) {
        best_tokens_.AddNearTie();
        continue;
      }
      ++sure;
      const std::span<const float> ours = std::span(actual).subspan(position * vocab, vocab);
      EXPECT_TRUE(best_tokens_.Add(testing::ArgMax(ours) == best)) << "position " << position;
    }
    EXPECT_GT(sure, tokens.size() / 2);
    return largest;
  }
};

TEST_P(SafetensorsGoldenTest, StrictLogits) {
  const double error = LargestError({.backend = kernels::Backend::kRef}, kStrictError);
  EXPECT_LE(error, kStrictError);
  std::printf("ref: largest error %.2e\n", error);
}

TEST_P(SafetensorsGoldenTest, CpuLogits) {
  for (const bool force_avx2 : {false, true}) {
    const double error = LargestError({.force_avx2 = force_avx2}, kCpuError);
    EXPECT_LE(error, kCpuError);
    std::printf("cpu: largest error %.2e\n", error);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SafetensorsGoldenTest, ::testing::ValuesIn(Models()),
                         [](const auto& info) {
                           std::string name = info.param["directory"];
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(SafetensorsGoldenSetTest, HasEveryModel) { EXPECT_EQ(Models().size(), 14u); }

}  // namespace
}  // namespace sluice
