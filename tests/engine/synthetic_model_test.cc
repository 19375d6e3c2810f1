// The generator of models of random weights: types as llama-quantize chooses them, values of the
// wanted spread, files that load and compute.

#include "tests/testing/synthetic_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "tests/testing/byte_vocabulary.h"
#include "tests/testing/model_probe.h"
#include "tests/testing/random_blocks.h"

namespace sluice::testing {
namespace {

using kernels::DType;

struct Listed {
  std::map<std::string, DType> types;
  uint64_t step_bytes = 0;
};

Listed ListTensors(const std::string& shape, const std::string& types) {
  SyntheticSpec spec = *SyntheticShape(shape);
  spec.types = types;
  Listed listed;
  const std::vector<engine::TensorRecord> tensors = *SyntheticTensors(spec);
  for (const engine::TensorRecord& tensor : tensors) {
    listed.types[tensor.name] = tensor.type;
    if (spec.tied_head || tensor.name != "token_embd.weight") listed.step_bytes += tensor.bytes();
  }
  return listed;
}

TEST(SyntheticModelTest, RowsThatAreNoMultipleOf256FallBack) {
  Listed listed = ListTensors("qwen2.5-0.5b", "q4_k_m");
  EXPECT_EQ(listed.types["token_embd.weight"], DType::kQ8_0);
  EXPECT_EQ(listed.types["blk.0.attn_q.weight"], DType::kQ5_0);
  EXPECT_EQ(listed.types["blk.0.attn_v.weight"], DType::kQ8_0);
  EXPECT_EQ(listed.types["blk.3.attn_v.weight"], DType::kQ5_0);
  EXPECT_EQ(listed.types["blk.0.ffn_gate.weight"], DType::kQ5_0);
  EXPECT_EQ(listed.types["blk.3.ffn_down.weight"], DType::kQ4_K);
  std::vector<int> with_more;
  for (int layer = 0; layer < 24; ++layer) {
    const std::string name = "blk." + std::to_string(layer) + ".ffn_down.weight";
    if (listed.types[name] == DType::kQ6_K) with_more.push_back(layer);
  }
  // The first eighth, the last, and every third between.
  EXPECT_THAT(with_more, ::testing::ElementsAre(0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23));
  EXPECT_NEAR(static_cast<double>(listed.step_bytes), 391.9e6, 0.1e6);
}

TEST(SyntheticModelTest, RowsOf256KeepTheirTypes) {
  Listed listed = ListTensors("qwen2.5-7b", "q4_k_m");
  EXPECT_EQ(listed.types["token_embd.weight"], DType::kQ4_K);
  EXPECT_EQ(listed.types["output.weight"], DType::kQ6_K);
  EXPECT_EQ(listed.types["blk.0.attn_v.weight"], DType::kQ6_K);
  EXPECT_EQ(listed.types["blk.4.attn_v.weight"], DType::kQ4_K);
  EXPECT_EQ(listed.types["blk.4.ffn_up.weight"], DType::kQ4_K);
}

TEST(SyntheticModelTest, SmolLm2HasTheTypesOfItsFile) {
  Listed listed = ListTensors("smollm2-135m", "q4_1");
  EXPECT_EQ(listed.types["token_embd.weight"], DType::kQ8_0);
  EXPECT_EQ(listed.types["blk.29.ffn_down.weight"], DType::kQ4_1);
  EXPECT_NEAR(static_cast<double>(listed.step_bytes), 96.6e6, 0.1e6);
}

TEST(SyntheticModelTest, UnknownWordsAreErrors) {
  EXPECT_FALSE(SyntheticShape("gpt-5").ok());
  SyntheticSpec spec = *SyntheticShape("smollm2-135m");
  spec.types = "q9_9";
  EXPECT_FALSE(SyntheticTensors(spec).ok());
}

TEST(SyntheticModelTest, ValuesHaveTheWantedSpread) {
  constexpr float kSigma = 0.03f;
  constexpr int kValues = 256 * 1024;
  for (const DType type : {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1,
                           DType::kQ5_0, DType::kQ5_1, DType::kIQ4_NL, DType::kQ2_K, DType::kQ3_K,
                           DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    std::vector<std::byte> stored(static_cast<size_t>(kernels::RowBytes(type, kValues)));
    RandomBlocks(type, kSigma).Fill(7, stored);
    std::vector<float> values(kValues);
    kernels::DequantizeStored(type, stored.data(), kValues, values.data());
    double sum = 0, squares = 0;
    for (const float value : values) {
      sum += value;
      squares += double{value} * value;
    }
    const double sigma = std::sqrt(squares / kValues);
    EXPECT_NEAR(sigma, kSigma, 0.04 * kSigma) << kernels::Name(type);
    // Half a step of the coarsest levels that are not symmetric.
    const double half_a_step = type == DType::kQ3_K ? 0.24 : 0.12;
    EXPECT_NEAR(sum / kValues, 0, half_a_step * kSigma) << kernels::Name(type);
  }
}

TEST(SyntheticModelTest, EqualSeedsGiveEqualBytesOnAnyNumberOfThreads) {
  SyntheticSpec spec = *SyntheticShape("smollm2-135m");
  spec.layers = 1;
  spec.vocab_size = 2000;
  spec.types = "q4_k_m";
  const std::string path = ::testing::TempDir() + "synthetic.gguf";
  std::vector<std::string> files;
  for (const int threads : {1, 3}) {
    ASSERT_TRUE(WriteSyntheticModel(spec, path, threads).ok());
    std::FILE* file = std::fopen(path.c_str(), "rb");
    ASSERT_NE(file, nullptr);
    std::string& bytes = files.emplace_back(size_t{64} << 20, '\0');
    bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file));
    std::fclose(file);
  }
  EXPECT_GT(files[0].size(), 1u << 20);
  EXPECT_EQ(files[0], files[1]);
  std::remove(path.c_str());
}

TEST(SyntheticModelTest, FileLoadsAndItsLogitsAreSane) {
  SyntheticSpec spec = *SyntheticShape("qwen2.5-0.5b");
  spec.layers = 2;
  spec.vocab_size = 3000;
  const std::vector<engine::TokenId> tokens = {1, 2, 300, 2999};
  for (const std::string& types : SyntheticTypes()) {
    spec.types = types;
    const std::string path = ::testing::TempDir() + "synthetic." + types + ".gguf";
    const absl::StatusOr<SyntheticReport> report = WriteSyntheticModel(spec, path, 2);
    ASSERT_TRUE(report.ok()) << report.status();
    const auto runner = OpenProbe(path, {});
    const std::vector<float> logits = AllLogits(*runner, tokens, 4);
    std::remove(path.c_str());
    ASSERT_EQ(logits.size(), 4u * 3000);
    double squares = 0;
    for (const float logit : logits) squares += double{logit} * logit;
    const double sigma = std::sqrt(squares / static_cast<double>(logits.size()));
    EXPECT_GT(sigma, 0.5) << types;
    EXPECT_LT(sigma, 2) << types;
  }
}

TEST(ByteVocabularyTest, EveryMergeMakesATokenOfTwoThatComeBefore) {
  const ByteVocabulary vocabulary = ByteVocabulary::Make(70000);
  ASSERT_EQ(vocabulary.tokens.size(), 70000u);
  ASSERT_EQ(vocabulary.types.size(), 70000u);
  ASSERT_EQ(vocabulary.merges.size(), 70000u - 259);
  std::map<std::string, size_t> places;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    EXPECT_TRUE(places.emplace(vocabulary.tokens[i], i).second) << vocabulary.tokens[i];
  }
  for (size_t i = 0; i < vocabulary.merges.size(); ++i) {
    const std::string& merge = vocabulary.merges[i];
    const size_t space = merge.find(' ');
    const std::string first = merge.substr(0, space), second = merge.substr(space + 1);
    EXPECT_EQ(first + second, vocabulary.tokens[256 + i]);
    EXPECT_LT(places.at(first), 256 + i);
    EXPECT_LT(places.at(second), 256u);
  }
  EXPECT_EQ(vocabulary.tokens[vocabulary.eos], "<|im_end|>");
}

}  // namespace
}  // namespace sluice::testing
