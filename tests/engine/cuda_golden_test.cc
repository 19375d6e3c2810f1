// The forward pass on a GPU against logits that are not ours (tests/golden/README.md), and against
// itself: the same bits whatever the chunks. Skipped where there is no device.

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "kernels/ops.h"
#include "tests/testing/model_probe.h"
#include "tests/testing/npy.h"

namespace sluice {
namespace {

using engine::TokenId;
using testing::AllLogits;
using testing::ArgMax;

const std::string kGolden = SLUICE_GOLDEN_DIR;

std::vector<nlohmann::json> GoldenModels() {
  std::vector<nlohmann::json> models;
  for (const std::string folder : {"tiny", "architectures"}) {
    std::ifstream stream(kGolden + "/" + folder + "/manifest.json");
    for (nlohmann::json model : nlohmann::json::parse(stream)) {
      model["path"] = kGolden + "/" + folder + "/" + model["file"].get<std::string>();
      model["logits_path"] = kGolden + "/" + folder + "/" + model["logits"].get<std::string>();
      if (std::filesystem::exists(model["path"].get<std::string>())) models.push_back(model);
    }
  }
  return models;
}

class CudaGoldenTest : public ::testing::TestWithParam<nlohmann::json> {
 protected:
  void SetUp() override {
    const auto device = kernels::OpenDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
  }
};

TEST_P(CudaGoldenTest, LogitsOfEveryPosition) {
  const auto tokens = GetParam()["ids"].get<std::vector<TokenId>>();
  const testing::NpyArray expected = testing::LoadNpy(GetParam()["logits_path"]);
  const size_t vocab = expected.values.size() / tokens.size();
  for (const kernels::DType kv_type : {kernels::DType::kF32, kernels::DType::kF16}) {
    const auto runner = testing::OpenProbe(
        GetParam()["path"], {.backend = kernels::Backend::kCuda, .kv_type = kv_type});
    const std::vector<float> actual = AllLogits(*runner, tokens, 17);
    ASSERT_EQ(actual.size(), expected.values.size());
    double largest = 0, dot = 0, aa = 0, ee = 0;
    size_t compared = 0, same = 0;
    for (size_t i = 0; i < actual.size(); ++i) {
      const double error = std::abs(double{actual[i]} - expected.values[i]);
      if (!(error <= largest)) largest = error;
      dot += double{actual[i]} * expected.values[i];
      aa += double{actual[i]} * actual[i];
      ee += double{expected.values[i]} * expected.values[i];
    }
    for (size_t t = 0; t < tokens.size(); ++t) {
      std::vector<float> row(expected.values.begin() + static_cast<long>(t * vocab),
                             expected.values.begin() + static_cast<long>((t + 1) * vocab));
      const size_t best = ArgMax(row);
      const float top = row[best];
      row[best] = -INFINITY;
      if (top - row[ArgMax(row)] <= 0.02f) continue;
      ++compared;
      same += ArgMax(std::span(actual).subspan(t * vocab, vocab)) == best;
    }
    std::printf("%-28s %s cache: largest error %.2e, cosine %.9f, top-1 %zu of %zu\n",
                GetParam()["file"].get<std::string>().c_str(), kernels::Name(kv_type).data(),
                largest, dot / std::sqrt(aa * ee), same, compared);
    EXPECT_LE(largest, 0.1);
    EXPECT_GE(dot / std::sqrt(aa * ee), 0.99999);
    EXPECT_EQ(same, compared);
  }
}

TEST_P(CudaGoldenTest, TheSameBitsWhateverTheChunks) {
  const auto tokens = GetParam()["ids"].get<std::vector<TokenId>>();
  std::vector<float> whole;
  for (const int chunk : {64, 1, 7, 33}) {
    const auto runner =
        testing::OpenProbe(GetParam()["path"], {.backend = kernels::Backend::kCuda});
    const std::vector<float> logits = AllLogits(*runner, tokens, chunk);
    if (whole.empty()) whole = logits;
    size_t different = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
      different += std::memcmp(&whole[i], &logits[i], sizeof(float)) != 0;
    }
    EXPECT_EQ(different, 0u) << "chunks of " << chunk << ", of " << whole.size();
  }
}

std::string TestName(const ::testing::TestParamInfo<nlohmann::json>& info) {
  std::string name = info.param["file"];
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}
INSTANTIATE_TEST_SUITE_P(Models, CudaGoldenTest, ::testing::ValuesIn(GoldenModels()), TestName);

}  // namespace
}  // namespace sluice
