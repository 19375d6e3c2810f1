// The control of golden_test: with one trait of a model left out or changed, the strict path must
// miss the golden logits. What moves nothing there is not tested there.

#include <cmath>
#include <fstream>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "tests/testing/model_probe.h"
#include "tests/testing/npy.h"

namespace sluice {
namespace {

using engine::LayerTraits;
using engine::ModelConfig;
using engine::RopeTable;

constexpr double kStrictError = 1e-3;  // of golden_test
constexpr double kMissed = 0.05;
const std::string kFolder = std::string(SLUICE_GOLDEN_DIR) + "/architectures/";

struct Change {
  const char* name;
  const char* model;
  std::function<void(ModelConfig&)> apply;
};
void PrintTo(const Change& change, std::ostream* out) { *out << change.name; }

std::vector<engine::TokenId> IdsOf(const std::string& model) {
  for (const nlohmann::json& entry :
       nlohmann::json::parse(std::ifstream(kFolder + "manifest.json"))) {
    if (entry["file"] == model + ".gguf") return entry["ids"].get<std::vector<engine::TokenId>>();
  }
  return {};
}

double LargestError(const Change& change) {
  const std::string model = change.model;
  const auto runner =
      testing::OpenProbe(kFolder + model + ".gguf", {.backend = kernels::Backend::kRef,
                                                     .kv_type = kernels::DType::kF32,
                                                     .change_config = change.apply});
  const std::vector<float> actual = testing::AllLogits(*runner, IdsOf(model), 7);
  const std::vector<float> expected = testing::LoadNpy(kFolder + model + ".logits.npy").values;
  EXPECT_EQ(actual.size(), expected.size());
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(double{actual[i]} - expected[i]);
    if (!(error <= largest)) largest = error;
  }
  return largest;
}

class GoldenControlTest : public ::testing::TestWithParam<Change> {};

TEST_P(GoldenControlTest, MissesTheGoldenLogits) {
  const double unchanged = LargestError({"unchanged", GetParam().model, [](ModelConfig&) {}});
  EXPECT_LE(unchanged, kStrictError);
  const double changed = LargestError(GetParam());
  EXPECT_GT(changed, kMissed);
  std::printf("%s of %s: error %.2e\n", GetParam().name, GetParam().model, changed);
}

// Frequencies without scaling or factors.
void PlainFrequencies(ModelConfig& config) {
  for (RopeTable& table : config.ropes) {
    for (size_t i = 0; i < table.inverse_frequencies.size(); ++i) {
      table.inverse_frequencies[i] = std::pow(
          table.base, -2.0f * static_cast<float>(i) / static_cast<float>(table.rotary_size));
    }
  }
}
void PlainMagnitude(ModelConfig& config) { config.ropes[0].magnitude = 1.0f; }
auto EachLayer(std::function<void(LayerTraits&)> edit) {
  return [edit](ModelConfig& config) {
    for (LayerTraits& layer : config.layers) edit(layer);
  };
}
const auto kNoWindow = EachLayer([](LayerTraits& layer) { layer.window = 0; });
const auto kWiderWindow = EachLayer([](LayerTraits& layer) { layer.window += layer.window > 0; });
const auto kFirstRope = EachLayer([](LayerTraits& layer) { layer.rope = 0; });
const auto kSecondRope = EachLayer([](LayerTraits& layer) { layer.rope = 1; });

std::string NameOf(const ::testing::TestParamInfo<Change>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(
    Rope, GoldenControlTest,
    ::testing::Values(
        Change{"linear", "linear.f32", PlainFrequencies},
        Change{"factors", "exaone.f16", PlainFrequencies},
        Change{"yarn_frequencies", "qwen3-yarn.f16", PlainFrequencies},
        Change{"yarn_magnitude", "qwen3-yarn.f16", PlainMagnitude},
        Change{"yarn_betas_frequencies", "qwen2-yarn.f16", PlainFrequencies},
        Change{"yarn_log_multiplier", "qwen2-yarn.f16",
               [](ModelConfig& c) { c.ropes[0].magnitude = 1.0f + 0.1f * std::log(4.0f); }},
        Change{"mistral3_magnitude", "mistral3.f16",
               [](ModelConfig& c) { c.ropes[0].magnitude = 1.0f + 0.1f * std::log(4.0f); }},
        Change{"longrope_frequencies", "phi3-longrope.f16", PlainFrequencies},
        Change{"longrope_magnitude", "phi3-longrope.f16", PlainMagnitude},
        Change{"unrotated_layers", "smollm3.f16", kFirstRope},
        Change{"gemma3_scaling", "gemma3.f16", PlainFrequencies},
        Change{"gemma3_one_rope", "gemma3.f16", kFirstRope},
        Change{"gemma3_other_rope", "gemma3.f16", kSecondRope},
        Change{"gemma3_swa_one_rope", "gemma3-swa.f16", kFirstRope},
        Change{"gemma3_swa_other_rope", "gemma3-swa.f16", kSecondRope}),
    NameOf);

INSTANTIATE_TEST_SUITE_P(Windows, GoldenControlTest,
                         ::testing::Values(Change{"gemma2", "gemma2.f16", kNoWindow},
                                           Change{"gemma2_by_one", "gemma2.f16", kWiderWindow},
                                           Change{"gemma2_everywhere", "gemma2.f16",
                                                  EachLayer([](LayerTraits& layer) {
                                                    layer.window = 9;
                                                  })},
                                           Change{"gemma3", "gemma3.f16", kNoWindow},
                                           Change{"gemma3_by_one", "gemma3.f16", kWiderWindow},
                                           Change{"gemma3_swa", "gemma3-swa.f16", kNoWindow},
                                           Change{"phi3", "phi3.f16", kNoWindow},
                                           Change{"phi3_by_one", "phi3.f16", kWiderWindow}),
                         NameOf);

INSTANTIATE_TEST_SUITE_P(
    Scales, GoldenControlTest,
    ::testing::Values(
        Change{"gemma_embedding", "gemma.bf16", [](ModelConfig& c) { c.embedding_scale = 1; }},
        Change{"gemma2_scores", "gemma2.f16", [](ModelConfig& c) { c.attention_softcap = 0; }},
        Change{"gemma2_logits", "gemma2.f16", [](ModelConfig& c) { c.logit_softcap = 0; }},
        Change{"gemma3_logits", "gemma3-swa.f16", [](ModelConfig& c) { c.logit_softcap = 0; }},
        Change{"granite_embedding", "granite.bf16", [](ModelConfig& c) { c.embedding_scale = 1; }},
        Change{"granite_residual", "granite.bf16", [](ModelConfig& c) { c.residual_scale = 1; }},
        Change{"granite_attention", "granite.bf16",
               [](ModelConfig& c) { c.attention_scale = 0.25f; }},
        Change{"granite_logits", "granite.bf16", [](ModelConfig& c) { c.logit_scale = 1; }}),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    Blocks, GoldenControlTest,
    ::testing::Values(
        Change{"nemo_attention_scale", "nemo.f16",
               [](ModelConfig& c) { c.attention_scale = 0.25f; }},
        Change{"qwen3_head_norms", "qwen3.bf16", [](ModelConfig& c) { c.has_head_norm = false; }},
        Change{"gemma_activation", "gemma.bf16",
               [](ModelConfig& c) { c.ffn_activation = kernels::GateActivation::kSilu; }},
        Change{"gemma2_post_norms", "gemma2.f16", [](ModelConfig& c) { c.has_post_norms = false; }},
        Change{"gemma3_head_norms", "gemma3.f16", [](ModelConfig& c) { c.has_head_norm = false; }},
        Change{"starcoder2_activation", "starcoder2.f16",
               [](ModelConfig& c) { c.ffn_activation = kernels::GateActivation::kSilu; }},
        Change{"starcoder2_norms", "starcoder2.f16",
               [](ModelConfig& c) { c.norm_kind = kernels::NormKind::kRms; }},
        Change{"starcoder2_qkv_biases", "starcoder2.f16",
               [](ModelConfig& c) { c.has_qkv_bias = false; }},
        Change{"starcoder2_up_bias", "starcoder2.f16",
               [](ModelConfig& c) { c.has_linear_biases = false; }},
        Change{"stablelm_norms", "stablelm.f16",
               [](ModelConfig& c) { c.norm_kind = kernels::NormKind::kRms; }}),
    NameOf);

}  // namespace
}  // namespace sluice
