// Steps of one token by the persistent kernel against the same steps by the ops' own kernels, bit
// by bit. Skipped where there is no device.

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "kernels/ops.h"
#include "tests/testing/model_probe.h"

namespace sluice {
namespace {

using engine::TokenId;

const std::string kGolden = SLUICE_GOLDEN_DIR;

std::vector<nlohmann::json> GoldenModels() {
  std::vector<nlohmann::json> models;
  for (const std::string folder : {"tiny", "architectures"}) {
    std::ifstream stream(kGolden + "/" + folder + "/manifest.json");
    for (nlohmann::json model : nlohmann::json::parse(stream)) {
      model["path"] = kGolden + "/" + folder + "/" + model["file"].get<std::string>();
      if (std::filesystem::exists(model["path"].get<std::string>())) models.push_back(model);
    }
  }
  return models;
}

std::vector<float> LogitsOf(const nlohmann::json& model, std::span<const TokenId> tokens,
                            kernels::PersistentDecode persistent, int chunk) {
  const auto runner = testing::OpenProbe(model["path"], {.backend = kernels::Backend::kCuda,
                                                         .kv_type = kernels::DType::kF16,
                                                         .persistent_decode = persistent});
  return testing::AllLogits(*runner, tokens, chunk);
}

class CudaDecodeTest : public ::testing::TestWithParam<nlohmann::json> {
 protected:
  void SetUp() override {
    const auto device = kernels::OpenDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
  }
};

TEST_P(CudaDecodeTest, TheSameBitsAsTheOps) {
  auto tokens = GetParam()["ids"].get<std::vector<TokenId>>();
  // Several tiles of keys, several times over the handoff sets; fewer where gpu_check.sh says so.
  const char* fewer = std::getenv("SLUICE_DECODE_TOKENS");
  const size_t length = fewer == nullptr ? 200 : std::strtoul(fewer, nullptr, 10);
  const std::vector<TokenId> once = tokens;
  while (tokens.size() < length) tokens.insert(tokens.end(), once.begin(), once.end());
  tokens.resize(length);
  using kernels::PersistentDecode;
  const std::vector<float> ops = LogitsOf(GetParam(), tokens, PersistentDecode::kOff, 1);
  const struct {
    const char* name;
    std::vector<float> logits;
  } others[] = {
      {"chunks of 64", LogitsOf(GetParam(), tokens, PersistentDecode::kOff, 64)},
      {"operands prepared", LogitsOf(GetParam(), tokens, PersistentDecode::kPrepared, 1)},
      {"operands made as they are multiplied",
       LogitsOf(GetParam(), tokens, PersistentDecode::kDirect, 1)},
  };
  const size_t vocab = ops.size() / tokens.size();
  for (const auto& other : others) {
    ASSERT_EQ(ops.size(), other.logits.size()) << other.name;
    size_t different = 0, first = tokens.size();
    float worst = 0;
    for (size_t i = 0; i < ops.size(); ++i) {
      if (std::memcmp(&ops[i], &other.logits[i], sizeof(float)) == 0) continue;
      if (different++ == 0) first = i / vocab;
      worst = std::max(worst, std::abs(ops[i] - other.logits[i]));
    }
    EXPECT_EQ(different, 0u) << other.name << ": of " << ops.size() << ", first at position "
                             << first << ", largest difference " << worst;
  }
}

std::string TestName(const ::testing::TestParamInfo<nlohmann::json>& info) {
  std::string name = info.param["file"];
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}
INSTANTIATE_TEST_SUITE_P(Models, CudaDecodeTest, ::testing::ValuesIn(GoldenModels()), TestName);

}  // namespace
}  // namespace sluice
