// verify passes on sound models and names the first operation beyond tolerance under each planted
// bug.

#include "engine/verify.h"

#include <string>

#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

using kernels::PlantedBug;

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

TEST_P(VerifyTest, GoesRedUnderEveryPlantedBug) {
  ASSERT_TRUE(kernels::kPlantedBugsBuilt);
  for (PlantedBug bug : {PlantedBug::kKvHeadZeroOnly, PlantedBug::kPrefillStride,
                         PlantedBug::kFfnFourTimesWidth, PlantedBug::kKeyBiasDropped,
                         PlantedBug::kRopeBaseTenThousand, PlantedBug::kVocabularyUnpadded}) {
    const std::string file = GetParam();
    const bool has_bias = file.find("odd") != std::string::npos;
    const bool many_kv_heads = file.find("odd") == std::string::npos;
    const bool base_is_10000 = file.find("tiny-llama.") != std::string::npos;
    if (bug == PlantedBug::kKeyBiasDropped && !has_bias) continue;
    if (bug == PlantedBug::kKvHeadZeroOnly && !many_kv_heads) continue;
    if (bug == PlantedBug::kRopeBaseTenThousand && base_is_10000) continue;
    const auto report = VerifyModel(path(), Options(bug));
    if (report.ok()) {
      EXPECT_FALSE(report->passed) << "bug " << static_cast<int>(bug);
      EXPECT_FALSE(report->first_beyond.empty());
      std::printf("%s bug %d: first beyond tolerance: %s\n", GetParam(), static_cast<int>(bug),
                  report->first_beyond.c_str());
    } else {
      std::printf("%s bug %d: %s\n", GetParam(), static_cast<int>(bug),
                  report.status().ToString().c_str());
    }
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

TEST(LoadModelTest, SelfCheckRefusesPlantedBugs) {
  EngineOptions options;
  options.planted_bug = PlantedBug::kKvHeadZeroOnly;
  const auto model = LoadModel(std::string(SLUICE_GOLDEN_DIR) + "/tiny/tiny-llama31.q8_0.gguf",
                               options, 1, nullptr);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kFailedPrecondition) << model.status();
}

}  // namespace
}  // namespace sluice::engine
