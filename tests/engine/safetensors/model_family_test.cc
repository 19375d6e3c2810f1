// What config.json says of each class of models: read into the config, or refused.

#include "engine/safetensors/model_family.h"

#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "tests/engine/safetensors/model_directory.h"

namespace sluice::engine {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::ModelDirectory;

absl::StatusOr<ModelConfig> ConfigOf(const ModelDirectory& directory) {
  ASSIGN_OR_RETURN(const auto file, ModelFile::Open(directory.path()));
  return ModelConfig::FromFile(*file);
}

// config.json with the value at `key`, a JSON pointer, replaced, or without it where it is "".
void Edit(const ModelDirectory& directory, const std::string& key, std::string_view value) {
  json config = directory.ReadJson("config.json");
  if (value.empty()) {
    config.erase(key.substr(1));
  } else {
    config[json::json_pointer(key)] = json::parse(value);
  }
  directory.WriteJson("config.json", config);
}

constexpr absl::StatusCode kBad = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kUnknown = absl::StatusCode::kUnimplemented;

struct KeyCase {
  const char* name;
  const char* golden;
  const char* key;
  const char* value;
  absl::StatusCode code;
  std::vector<std::string> says;
};
void PrintTo(const KeyCase& c, std::ostream* out) { *out << c.name; }

class ModelFamilyErrorTest : public ::testing::TestWithParam<KeyCase> {};

TEST_P(ModelFamilyErrorTest, IsRefusedWithTheReason) {
  const KeyCase& c = GetParam();
  const ModelDirectory directory(c.golden);
  ASSERT_TRUE(ConfigOf(directory).ok()) << ConfigOf(directory).status();
  Edit(directory, c.key, c.value);
  const absl::Status status = ConfigOf(directory).status();
  EXPECT_EQ(status.code(), c.code) << Message(status);
  EXPECT_THAT(Message(status), ::testing::StartsWith(directory.path()));
  for (const std::string& text : c.says) EXPECT_THAT(Message(status), HasSubstr(text));
}

const KeyCase kCases[] = {
    {"GemmaOtherActivation",
     "gemma",
     "/hidden_act",
     "\"silu\"",
     kUnknown,
     {"'hidden_act'", "'gelu_pytorch_tanh'", "'silu'"}},
    {"GemmaOtherHiddenActivation",
     "gemma",
     "/hidden_activation",
     "\"relu\"",
     kUnknown,
     {"'hidden_activation'", "'relu'"}},
    {"GemmaWithoutAHeadSize", "gemma", "/head_dim", "", kBad, {"'head_dim'", "got none"}},
    {"GemmaWithoutKeyHeads",
     "gemma",
     "/num_key_value_heads",
     "",
     kBad,
     {"'num_key_value_heads'", "got none"}},
    {"GemmaBothWays",
     "gemma",
     "/use_bidirectional_attention",
     "true",
     kUnknown,
     {"'use_bidirectional_attention'"}},
    {"GemmaWithSoftcaps",
     "gemma",
     "/final_logit_softcapping",
     "30.0",
     kUnknown,
     {"'final_logit_softcapping'", "not known"}},
    {"Gemma2GeluItself",
     "gemma2",
     "/hidden_activation",
     "\"gelu\"",
     kUnknown,
     {"'hidden_activation'", "'gelu'"}},
    {"Gemma2OtherScale",
     "gemma2",
     "/query_pre_attn_scalar",
     "32",
     kUnknown,
     {"gemma2.attention.scale", "0.25", "(config.json key 'query_pre_attn_scalar')"}},
    {"Gemma2NoScale",
     "gemma2",
     "/query_pre_attn_scalar",
     "",
     kBad,
     {"'query_pre_attn_scalar'", "got none"}},
    {"Gemma2ScaleOfZero",
     "gemma2",
     "/query_pre_attn_scalar",
     "0",
     kBad,
     {"'query_pre_attn_scalar'", "above 0"}},
    {"Gemma2NoAttentionSoftcap",
     "gemma2",
     "/attn_logit_softcapping",
     "null",
     kBad,
     {"'attn_logit_softcapping'", "got none"}},
    {"Gemma2NoLogitSoftcap",
     "gemma2",
     "/final_logit_softcapping",
     "",
     kBad,
     {"'final_logit_softcapping'", "got none"}},
    {"Gemma2NegativeSoftcap",
     "gemma2",
     "/final_logit_softcapping",
     "-1",
     kBad,
     {"final_logit_softcapping", "got -1"}},
    {"Gemma2NoWindow", "gemma2", "/sliding_window", "null", kBad, {"'sliding_window'", "above 0"}},
    {"Gemma2OtherLayerType",
     "gemma2",
     "/layer_types/1",
     "\"chunked_attention\"",
     kUnknown,
     {"'layer_types'", "'sliding_attention'", "chunked_attention"}},
    {"Gemma2APatternIsGemma3s",
     "gemma2",
     "/sliding_window_pattern",
     "3",
     kUnknown,
     {"'sliding_window_pattern'", "not known"}},
    {"Gemma3AttentionSoftcap",
     "gemma3",
     "/attn_logit_softcapping",
     "50.0",
     kUnknown,
     {"'attn_logit_softcapping'", "50"}},
    {"Gemma3FlatRope",
     "gemma3",
     "/rope_parameters",
     R"({"rope_type": "default"})",
     kUnknown,
     {"'rope_parameters'", "'rope_type'", "not known"}},
    {"Gemma3RopeOfOneKind",
     "gemma3",
     "/rope_parameters",
     R"({"full_attention": {"rope_type": "default"}})",
     kBad,
     {"'rope_parameters'", "'sliding_attention'"}},
    {"Gemma3RopeOfAThirdKind",
     "gemma3",
     "/rope_parameters/chunked_attention",
     R"({"rope_type": "default"})",
     kUnknown,
     {"'rope_parameters'", "'chunked_attention'", "not known"}},
    {"Gemma3ScaledWindowRope",
     "gemma3",
     "/rope_parameters/sliding_attention/rope_type",
     "\"linear\"",
     kUnknown,
     {"'rope_parameters.sliding_attention'", "'rope_type'", "'linear'"}},
    {"Gemma3UnknownKeyOfWindowRope",
     "gemma3",
     "/rope_parameters/sliding_attention/factor",
     "2.0",
     kUnknown,
     {"'rope_parameters.sliding_attention'", "'factor'", "not known"}},
    {"Gemma3OtherRope",
     "gemma3",
     "/rope_parameters/full_attention/rope_type",
     "\"dynamic\"",
     kUnknown,
     {"'rope_parameters.full_attention'", "'rope_type'", "'dynamic'"}},
    {"Gemma3WindowRopeOfZero",
     "gemma3-version4",
     "/rope_local_base_freq",
     "0",
     kBad,
     {"'rope_local_base_freq'", "above 0"}},
    {"Gemma3PatternOfZero",
     "gemma3-version4",
     "/sliding_window_pattern",
     "0",
     kBad,
     {"'sliding_window_pattern'", "from 1", "got 0"}},
    {"LlamaWithALocalBase",
     "llama3",
     "/rope_local_base_freq",
     "10000.0",
     kUnknown,
     {"'rope_local_base_freq'", "not known"}},
    {"Phi3AttentionBias", "phi3", "/attention_bias", "true", kUnknown, {"'attention_bias'"}},
    {"Phi3HeadBias", "phi3", "/lm_head_bias", "true", kUnknown, {"'lm_head_bias'"}},
    {"Phi3Interpolated", "phi3", "/interpolate_factor", "2", kUnknown, {"'interpolate_factor'"}},
    {"Phi3OtherScaling",
     "phi3-longrope",
     "/rope_scaling/type",
     "\"yarn\"",
     kUnknown,
     {"'rope_scaling'", "'rope_type'", "'longrope'", "'yarn'"}},
    {"Phi3NoOriginalContext",
     "phi3-longrope",
     "/original_max_position_embeddings",
     "",
     kBad,
     {"'original_max_position_embeddings'", "got none"}},
    {"Phi3TwoOriginalContexts",
     "phi3-longrope",
     "/rope_scaling/original_max_position_embeddings",
     "32",
     kBad,
     {"'rope_scaling'", "'original_max_position_embeddings'", "64, got 32"}},
    {"Phi3OtherFactor",
     "phi3-longrope",
     "/rope_scaling/factor",
     "4.0",
     kUnknown,
     {"'rope_scaling'", "'factor'", "8"}},
    {"Phi3FactorsOfAnotherSize",
     "phi3-longrope",
     "/rope_scaling/long_factor",
     "[1.0, 2.0]",
     kBad,
     {"'long_factor'", "expected 3 numbers, got 2"}},
    {"Phi3FactorsNoArray",
     "phi3-longrope",
     "/rope_scaling/short_factor",
     "{\"a\": 1.0}",
     kBad,
     {"'short_factor'", "an array of numbers"}},
    {"Phi3NoFactors",
     "phi3-longrope",
     "/rope_scaling/short_factor",
     "null",
     kBad,
     {"'short_factor'", "got none"}},
    {"Phi3FactorOfText",
     "phi3-longrope",
     "/rope_scaling/short_factor/1",
     "\"2\"",
     kBad,
     {"'short_factor'", "an array of numbers"}},
    {"Phi3FactorOfZero",
     "phi3-longrope",
     "/rope_scaling/short_factor/1",
     "0.0",
     kBad,
     {"rope_factors_short.weight", "above 0"}},
    {"Phi3ScaledMagnitudes",
     "phi3-longrope",
     "/rope_scaling/short_mscale",
     "1.5",
     kUnknown,
     {"'rope_scaling'", "'short_mscale'", "not known"}},
    {"Phi3MoreThanAHeadRotated",
     "phi3-longrope",
     "/partial_rotary_factor",
     "1.5",
     kBad,
     {"'partial_rotary_factor'", "at most 1"}},
    {"GraniteNoScale",
     "granite",
     "/attention_multiplier",
     "0.0",
     kBad,
     {"granite.attention.scale", "(config.json key 'attention_multiplier')"}},
    {"GraniteScaleOfText", "granite", "/logits_scaling", "\"8\"", kBad, {"'logits_scaling'"}},
    {"GraniteMlpBias", "granite", "/mlp_bias", "true", kUnknown, {"'mlp_bias'"}},
    {"LlamaWithAScale",
     "llama3",
     "/residual_multiplier",
     "0.5",
     kUnknown,
     {"'residual_multiplier'", "not known"}},
    {"StarCoder2WithoutBiases", "starcoder2", "/use_bias", "false", kUnknown, {"'use_bias'"}},
    {"StarCoder2OtherMlp",
     "starcoder2",
     "/mlp_type",
     "\"gated\"",
     kUnknown,
     {"'mlp_type'", "'default'", "'gated'"}},
    {"StarCoder2OtherNorm",
     "starcoder2",
     "/norm_type",
     "\"rms_norm\"",
     kUnknown,
     {"'norm_type'", "'rms_norm'"}},
    {"StarCoder2OtherActivation",
     "starcoder2",
     "/hidden_act",
     "\"gelu\"",
     kUnknown,
     {"'hidden_act'", "'gelu'"}},
    {"StarCoder2NoEpsilon",
     "starcoder2",
     "/norm_epsilon",
     "",
     kBad,
     {"'norm_epsilon'", "got none"}},
    {"StarCoder2UnscaledAttention",
     "starcoder2",
     "/scale_attn_weights",
     "false",
     kUnknown,
     {"'scale_attn_weights'"}},
    {"SmolLm3OtherLayers",
     "smollm3",
     "/no_rope_layers",
     "[1, 1, 0, 1, 1]",
     kUnknown,
     {"'no_rope_layers'", "4th", "[1,1,0,1,1]"}},
    {"SmolLm3AllRotated", "smollm3", "/no_rope_layers/3", "1", kUnknown, {"'no_rope_layers'"}},
    {"SmolLm3TooFewLayers",
     "smollm3",
     "/no_rope_layers",
     "[1, 1, 1, 0]",
     kBad,
     {"'no_rope_layers'", "5 layers"}},
    {"SmolLm3Window", "smollm3", "/use_sliding_window", "true", kUnknown, {"'use_sliding_window'"}},
    {"StableLmNormOfHeads", "stablelm", "/qk_layernorm", "true", kUnknown, {"'qk_layernorm'"}},
    {"StableLmParallel",
     "stablelm",
     "/use_parallel_residual",
     "true",
     kUnknown,
     {"'use_parallel_residual'"}},
    {"StableLmBiasesUnannounced",
     "stablelm",
     "/use_qkv_bias",
     "false",
     kUnknown,
     {"_proj.bias'", "no place"}},
};

INSTANTIATE_TEST_SUITE_P(Cases, ModelFamilyErrorTest, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

std::vector<int32_t> Windows(const ModelConfig& config) {
  std::vector<int32_t> windows;
  for (const LayerTraits& layer : config.layers) windows.push_back(layer.window);
  return windows;
}

TEST(ModelFamilyTest, ReadsWindowsOfGemma) {
  const ModelDirectory two("gemma2"), three("gemma3-version4");
  auto config = ConfigOf(two);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Windows(*config), ElementsAre(9, 0, 9));
  Edit(two, "/layer_types", "");
  config = ConfigOf(two);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Windows(*config), ElementsAre(9, 0, 9));
  Edit(two, "/layer_types", R"(["full_attention", "full_attention", "sliding_attention"])");
  config = ConfigOf(two);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Windows(*config), ElementsAre(0, 0, 9));
  config = ConfigOf(three);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Windows(*config), ElementsAre(11, 11, 0, 11));
  Edit(three, "/sliding_window_pattern", "");
  config = ConfigOf(three);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Windows(*config), ElementsAre(11, 11, 11, 11));
}

TEST(ModelFamilyTest, KnowsTheBasesOfGemma3) {
  const ModelDirectory directory("gemma3-version4");
  auto config = ConfigOf(directory);
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(config->ropes.size(), 2u);
  EXPECT_EQ(config->ropes[0].base, 500000.0f);
  EXPECT_EQ(config->ropes[1].base, 2000.0f);
  Edit(directory, "/rope_theta", "");
  Edit(directory, "/rope_local_base_freq", "");
  config = ConfigOf(directory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->ropes[0].base, 1000000.0f);
  EXPECT_EQ(config->ropes[1].base, 10000.0f);
}

// Norms are 1 more than what is stored, other tensors are not; and the stored bytes stay.
TEST(ModelFamilyTest, AddsOneToTheNormsOfGemmaAlone) {
  for (const char* golden : {"gemma3", "qwen3"}) {
    const ModelDirectory directory(golden);
    const auto file = ModelFile::Open(directory.path());
    ASSERT_TRUE(file.ok()) << file.status();
    const auto config = ModelConfig::FromFile(**file);
    ASSERT_TRUE(config.ok()) << config.status();
    const float added = golden == std::string("gemma3") ? 1.0f : 0.0f;
    for (const FileTensor& tensor : (*file)->tensors()) {
      EXPECT_EQ(tensor.added, tensor.dims.size() == 1 ? added : 0.0f) << tensor.name;
    }
    const auto weights = Weights::Load(**file, *config, {});
    ASSERT_TRUE(weights.ok()) << weights.status();
    const FileTensor* tensor = (*file)->FindTensor("output_norm.weight");
    ASSERT_NE(tensor, nullptr);
    ASSERT_EQ(tensor->type, kernels::DType::kBF16);
    std::vector<uint16_t> stored(tensor->cols());
    ASSERT_TRUE((*file)->Read(tensor->offset, std::as_writable_bytes(std::span(stored))).ok());
    for (size_t i = 0; i < stored.size(); ++i) {
      const uint32_t bits = uint32_t{stored[i]} << 16;
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      EXPECT_EQ((*weights)->output_norm().weight[i], value + added) << i;
    }
  }
}

TEST(ModelFamilyTest, ReadsLongFactorsOfPhi3) {
  const ModelDirectory directory("phi3-longrope");
  auto config = ConfigOf(directory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->context_length, 64);
  ASSERT_EQ(config->ropes.size(), 1u);
  EXPECT_EQ(config->ropes[0].rotary_size, 6);
  // sqrt(1 + ln(512 / 64) / ln(64))
  EXPECT_FLOAT_EQ(config->ropes[0].magnitude, 1.2247449f);
  Edit(directory, "/rope_scaling/attention_factor", "1.5");
  Edit(directory, "/rope_scaling/factor", "8.0");
  config = ConfigOf(directory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->ropes[0].magnitude, 1.5f);
}

// Absent, Granite's scales are 1; biases and windows are read where other classes have them.
TEST(ModelFamilyTest, ReadsScalesOfGranite) {
  const ModelDirectory directory("granite");
  auto config = ConfigOf(directory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->attention_scale, 0.125f);
  EXPECT_EQ(config->embedding_scale, 3.0f);
  EXPECT_EQ(config->residual_scale, 0.4f);
  EXPECT_EQ(config->logit_scale, 0.4f);
  EXPECT_TRUE(config->has_qkv_bias);
  for (const char* key : {"/attention_multiplier", "/embedding_multiplier", "/residual_multiplier",
                          "/logits_scaling"}) {
    Edit(directory, key, "");
  }
  config = ConfigOf(directory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->attention_scale, 1.0f);
  EXPECT_EQ(config->logit_scale, 1.0f);
}

TEST(ModelFamilyTest, ReadsTheWindowOfStarCoder2) {
  const ModelDirectory directory("starcoder2");
  auto config = ConfigOf(directory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Windows(*config), ElementsAre(11, 11));
  // None, where a GGUF file without the key means 4096.
  Edit(directory, "/sliding_window", "null");
  Edit(directory, "/max_position_embeddings", "16384");
  config = ConfigOf(directory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Windows(*config), ElementsAre(0, 0));
}

TEST(ModelFamilyTest, ReadsLayersWithoutRotationOfSmolLm3) {
  const ModelDirectory directory("smollm3");
  for (const char* value : {"[1, 1, 1, 0, 1, 1, 1, 0]", ""}) {
    Edit(directory, "/no_rope_layers", value);
    const auto config = ConfigOf(directory);
    ASSERT_TRUE(config.ok()) << config.status();
    std::vector<int32_t> ropes;
    for (const LayerTraits& layer : config->layers) ropes.push_back(layer.rope);
    EXPECT_THAT(ropes, ElementsAre(0, 0, 0, -1, 0));
  }
  Edit(directory, "/no_rope_layer_interval", "3");
  const absl::Status status = ConfigOf(directory).status();
  EXPECT_EQ(status.code(), kUnknown);
  EXPECT_THAT(Message(status), HasSubstr("'no_rope_layer_interval'"));
}

}  // namespace
}  // namespace sluice::engine
