// verify passes on sound models and names the first operation beyond tolerance under each planted
// bug.

#include "engine/verify.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using kernels::PlantedBug;
using ::testing::HasSubstr;

VerifyOptions Options(PlantedBug bug) {
  VerifyOptions options;
  options.engine.num_threads = 2;
  options.engine.planted_bug = bug;
  return options;
}

class VerifyTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::string path() const { return std::string(SLUICE_GOLDEN_DIR) + "/tiny/" + GetParam(); }
};

TEST_P(VerifyTest, PassesOnSoundModel) {
  const auto report = VerifyModel(path(), Options(PlantedBug::kNone));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->passed) << report->first_beyond;
  EXPECT_EQ(report->top1_equal, report->positions);
  double worst = 0;
  for (const VerifyRow& row : report->rows) worst = std::max(worst, row.relative_error);
  EXPECT_GT(worst, 0) << "two paths that agree to the bit are one path";
  std::printf("%s: worst relative error %.2e, worst logit error %.2e\n", GetParam(), worst,
              report->max_logit_error);
}

// What verify says first of a bug: the operation at which the paths part, or the tensor whose shape
// the wrong fact contradicts.
TEST_P(VerifyTest, NamesTheOperationOfEveryPlantedBug) {
  ASSERT_TRUE(kernels::kPlantedBugsBuilt);
  const std::string file = GetParam();
  const bool odd = file.find("odd") != std::string::npos;  // K bias, one KV head
  const bool base_is_10000 = file.find("tiny-llama.") != std::string::npos;
  struct Case {
    PlantedBug bug;
    bool shows;  // in this model
    const char* first_beyond;
    const char* refused_tensor;
  };
  const Case cases[] = {
      {PlantedBug::kKvHeadZeroOnly, !odd, "layer 0 k", nullptr},
      {PlantedBug::kPrefillStride, true, "layer 0 qkv", nullptr},
      {PlantedBug::kFfnFourTimesWidth, true, nullptr, "'blk.0.ffn_gate.weight'"},
      {PlantedBug::kKeyBiasDropped, odd, "layer 0 k", nullptr},
      {PlantedBug::kRopeBaseTenThousand, !base_is_10000, "layer 0 qkv", nullptr},
      {PlantedBug::kVocabularyUnpadded, true, nullptr, "'token_embd.weight'"},
  };
  for (const Case& one : cases) {
    if (!one.shows) continue;
    SCOPED_TRACE(static_cast<int>(one.bug));
    const auto report = VerifyModel(path(), Options(one.bug));
    if (one.refused_tensor != nullptr) {
      EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(report.status().message()), HasSubstr(one.refused_tensor));
      continue;
    }
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_FALSE(report->passed);
    EXPECT_EQ(report->first_beyond, one.first_beyond);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, VerifyTest,
                         ::testing::Values("tiny-llama.q4_1.gguf", "tiny-llama31.q8_0.gguf",
                                           "tiny-odd.f16.gguf"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) {
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           }
                           return name;
                         });

// Windows of the KL divergence are no longer than the model's context, whatever the text is.
TEST(VerifyKlTest, TakesTextsOfAnyLengthForAShortContext) {
  testing::TinyModelSpec spec;
  spec.context_length = 128;
  const testing::TempFile model(testing::MakeTinyModel(spec));
  VerifyOptions options = Options(PlantedBug::kNone);
  for (const int length : {1, 60, 128, 129, 300, 700}) {
    SCOPED_TRACE(length);
    // A token a byte: the vocabulary merges letters that are not here.
    std::string text;
    for (int i = 0; i < length; ++i) text += static_cast<char>('0' + i * i % 10);
    const testing::TempFile file(text);
    options.kl_file = file.path();
    options.kl_positions = 600;
    const auto report = VerifyModel(model.path(), options);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(report->passed) << report->first_beyond;
    EXPECT_EQ(report->kl_positions, std::min(length, 600));
    EXPECT_EQ(report->kl_top1_equal, report->kl_positions);
    EXPECT_GT(report->kl_max, 0);
    EXPECT_LT(report->kl_max, 1e-4);
    EXPECT_LE(report->kl_mean, report->kl_max);
  }
}

TEST(VerifyKlTest, AnEmptyTextIsRefused) {
  const testing::TempFile model(testing::MakeTinyModel({})), empty("");
  VerifyOptions options = Options(PlantedBug::kNone);
  options.kl_file = empty.path();
  const auto report = VerifyModel(model.path(), options);
  EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(report.status().message()),
            empty.path() + ": expected a text of at least one token, got 0 bytes");
}

TEST(LoadModelTest, SelfCheckRefusesPlantedBugs) {
  EngineOptions options;
  options.planted_bug = PlantedBug::kKvHeadZeroOnly;
  const auto model = LoadModel(std::string(SLUICE_GOLDEN_DIR) + "/tiny/tiny-llama31.q8_0.gguf",
                               options, 1, nullptr);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kFailedPrecondition) << model.status();
}

// Values of 1e6: the f32 cache of the strict path takes them.
TEST(LoadModelTest, SelfCheckSaysThatAnF16CacheOverflows) {
  for (const int layer : {0, 1}) {
    testing::TinyModelSpec spec;
    spec.vocabulary = false;
    testing::GgufDraft draft = testing::MakeTinyModelDraft(spec);
    std::string& bytes = draft.TensorAt("blk." + std::to_string(layer) + ".attn_v.weight").bytes;
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    for (float& value : values) value *= 1e6f;
    std::memcpy(bytes.data(), values.data(), bytes.size());
    const testing::TempFile file(draft.Bytes());

    EngineOptions options;
    options.kv_memory_bytes = 1 << 20;
    options.kv_dtype = KvDType::kF16;
    const auto f16 = LoadModel(file.path(), options, 1, nullptr);
    const std::string message = f16.ok() ? f16->self_check.message : Message(f16.status());
    EXPECT_THAT(message, HasSubstr("not finite"));
    EXPECT_THAT(message, HasSubstr("try --kv-dtype f32"));
    // Beyond the first layer there is no strict path to compare with.
    EXPECT_EQ(f16.ok(), layer == 1);

    options.kv_dtype = KvDType::kF32;
    const auto f32 = LoadModel(file.path(), options, 1, nullptr);
    ASSERT_TRUE(f32.ok()) << f32.status();
    EXPECT_TRUE(f32->self_check.passed) << f32->self_check.message;
  }
}

}  // namespace
}  // namespace sluice::engine
