#include "engine/model/model_config.h"

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/model_file/model_file.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using kernels::DType;
using kernels::PlantedBug;
using testing::EncodeTensor;
using testing::GgufDraft;
using ::testing::HasSubstr;
using testing::TempFile;
using testing::TinyModelSpec;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kUnsupported = absl::StatusCode::kUnimplemented;

absl::StatusOr<ModelConfig> ConfigOf(const std::string& path, PlantedBug bug = PlantedBug::kNone) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const ModelFile> file, ModelFile::Open(path));
  return ModelConfig::FromFile(*file, bug);
}

absl::StatusOr<ModelConfig> ConfigOf(const GgufDraft& draft, PlantedBug bug = PlantedBug::kNone) {
  const TempFile stored(draft.Bytes());
  return ConfigOf(stored.path(), bug);
}

TEST(ModelConfigTest, LlamaFactsComeFromTheFile) {
  TinyModelSpec spec;
  spec.layers = 3;
  spec.width = 96;
  spec.heads = 6;
  spec.kv_heads = 3;
  spec.ffn_width = 224;
  spec.vocab_size = 301;
  spec.context_length = 777;
  spec.norm_epsilon = 3e-6f;
  spec.rope_base = 50000.0f;
  const auto config = ConfigOf(testing::MakeTinyModelDraft(spec));
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->architecture, "llama");
  EXPECT_EQ(config->name, "tiny llama");
  EXPECT_EQ(config->num_layers, 3);
  EXPECT_EQ(config->width, 96);
  EXPECT_EQ(config->num_heads, 6);
  EXPECT_EQ(config->num_kv_heads, 3);
  EXPECT_EQ(config->head_size, 16);
  EXPECT_EQ(config->ffn_width, 224);
  EXPECT_EQ(config->vocab_size, 301);
  EXPECT_EQ(config->context_length, 777);
  EXPECT_EQ(config->norm_epsilon, 3e-6f);
  EXPECT_EQ(config->ropes[0].style, kernels::RopeStyle::kInterleaved);
  EXPECT_EQ(config->ropes[0].rotary_size, 16);
  EXPECT_EQ(config->ropes[0].base, 50000.0f);
  EXPECT_EQ(config->ropes[0].magnitude, 1.0f);
  EXPECT_EQ(config->attention_scale, 0.25f);
  EXPECT_FALSE(config->has_qkv_bias);
  EXPECT_FALSE(config->has_head_norm);
  EXPECT_FALSE(config->tied_head);
  ASSERT_EQ(config->ropes[0].inverse_frequencies.size(), 8u);
  for (int i = 0; i < 8; ++i) {
    EXPECT_FLOAT_EQ(config->ropes[0].inverse_frequencies[static_cast<size_t>(i)],
                    static_cast<float>(std::pow(50000.0, -2.0 * i / 16)));
  }
  EXPECT_EQ(config->ropes[0].inverse_frequencies[0], 1.0f);
}

TEST(ModelConfigTest, Qwen2TiedBiasedWithItsOwnHeadSize) {
  TinyModelSpec spec;
  spec.architecture = "qwen2";
  spec.head_size = 24;  // 4 heads of 24 on a width of 64
  spec.tied_head = true;
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  draft.Remove("qwen2.rope.dimension_count");
  draft.Remove("qwen2.attention.head_count_kv");
  draft.Set("qwen2.attention.head_count_kv", uint64_t{2});
  const auto config = ConfigOf(draft);
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->ropes[0].style, kernels::RopeStyle::kHalfSplit);
  EXPECT_EQ(config->head_size, 24);
  EXPECT_EQ(config->ropes[0].rotary_size, 24);
  EXPECT_TRUE(config->has_qkv_bias);
  EXPECT_TRUE(config->tied_head);
}

TEST(ModelConfigTest, OptionalFactsHaveTheFormatsDefaults) {
  TinyModelSpec spec;
  spec.kv_heads = spec.heads;
  spec.vocabulary = false;
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  draft.Remove("llama.attention.head_count_kv");
  draft.Remove("llama.rope.freq_base");
  draft.Remove("general.name");
  const TempFile stored(draft.Bytes());
  const auto config = ConfigOf(stored.path());
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->num_kv_heads, config->num_heads);
  EXPECT_EQ(config->ropes[0].base, 10000.0f);
  EXPECT_EQ(config->name, std::filesystem::path(stored.path()).filename());
}

// It is printed, logged, a label of every metric and a field of messages that hold UTF-8 alone.
TEST(ModelConfigTest, ANameThatCannotBeShownIsNotUsed) {
  GgufDraft draft = testing::MakeTinyModelDraft(TinyModelSpec());
  for (const std::string& name :
       {std::string("two\nlines"), std::string("\x1b[2J"), std::string("no \xff UTF-8"),
        std::string("back\u202ewards"), std::string("two\u2028lines"), std::string(257, 'n')}) {
    draft.SetString("general.name", name);
    const TempFile stored(draft.Bytes());
    const auto config = ConfigOf(stored.path());
    ASSERT_TRUE(config.ok()) << Message(config.status());
    EXPECT_EQ(config->name, std::filesystem::path(stored.path()).filename());
    EXPECT_THAT(config->notes, Contains(HasSubstr("general.name: expected at most 256 bytes")));
  }
  draft.SetString("general.name", "Größe 1");
  EXPECT_EQ(ConfigOf(draft)->name, "Größe 1");
}

TEST(ModelConfigTest, FactorsAndLinearScalingDivideFrequencies) {
  TinyModelSpec spec;  // heads of 16
  const auto plain = ConfigOf(testing::MakeTinyModelDraft(spec));
  ASSERT_TRUE(plain.ok());
  spec.rope_factors = {1, 1, 2, 4, 8, 8, 8, 8};
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  auto config = ConfigOf(draft);
  ASSERT_TRUE(config.ok()) << Message(config.status());
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(config->ropes[0].inverse_frequencies[i],
              plain->ropes[0].inverse_frequencies[i] / spec.rope_factors[i]);
  }
  draft.SetString("llama.rope.scaling.type", "linear");
  draft.Set("llama.rope.scaling.factor", 4.0f);
  draft.Set("llama.rope.scaling.original_context_length", uint32_t{128});
  draft.Set("llama.rope.scaling.finetuned", true);
  config = ConfigOf(draft);
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->ropes[0].inverse_frequencies[3],
            plain->ropes[0].inverse_frequencies[3] / 4.0f / 4.0f);
}

TEST(ModelConfigTest, YarnStretchesSlowFrequenciesAndLeavesFastOnes) {
  TinyModelSpec spec;
  spec.head_size = 64;
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  const auto plain = ConfigOf(draft);
  ASSERT_TRUE(plain.ok()) << Message(plain.status());
  draft.SetString("llama.rope.scaling.type", "yarn");
  draft.Set("llama.rope.scaling.factor", 4.0f);
  draft.Set("llama.rope.scaling.original_context_length", uint32_t{2048});
  auto config = ConfigOf(draft);
  ASSERT_TRUE(config.ok()) << Message(config.status());
  // 64 ln(2048 / (32 * 2 pi)) / (2 ln 10000) = 8.06 and 64 ln(2048 / 2 pi) / (2 ln 10000) = 20.1.
  for (size_t i = 0; i < 32; ++i) {
    const float ramp = i <= 8 ? 0.0f : i >= 21 ? 1.0f : (static_cast<float>(i) - 8) / 13;
    EXPECT_FLOAT_EQ(config->ropes[0].inverse_frequencies[i],
                    plain->ropes[0].inverse_frequencies[i] * (1 - ramp + ramp / 4))
        << i;
  }
  EXPECT_FLOAT_EQ(config->ropes[0].magnitude, 1.0f + 0.1f * std::log(4.0f));

  draft.Set("llama.rope.scaling.yarn_beta_fast", 8.0f);
  draft.Set("llama.rope.scaling.yarn_beta_slow", 2.0f);
  draft.Set("llama.rope.scaling.yarn_ext_factor", 1.0f);
  draft.Set("llama.rope.scaling.yarn_log_multiplier", 0.5f);
  config = ConfigOf(draft);
  ASSERT_TRUE(config.ok()) << Message(config.status());
  // Pairs floor(12.88) and ceil(17.69).
  EXPECT_EQ(config->ropes[0].inverse_frequencies[12], plain->ropes[0].inverse_frequencies[12]);
  EXPECT_LT(config->ropes[0].inverse_frequencies[13], plain->ropes[0].inverse_frequencies[13]);
  EXPECT_GT(config->ropes[0].inverse_frequencies[17],
            plain->ropes[0].inverse_frequencies[17] / 4.0f);
  EXPECT_FLOAT_EQ(config->ropes[0].inverse_frequencies[18],
                  plain->ropes[0].inverse_frequencies[18] / 4.0f);
  EXPECT_FLOAT_EQ(config->ropes[0].magnitude,
                  (1.0f + 0.1f * std::log(4.0f)) / (1.0f + 0.05f * std::log(4.0f)));

  draft.Remove("llama.rope.scaling.yarn_log_multiplier");
  draft.Set("llama.rope.scaling.yarn_attn_factor", 1.25f);
  draft.Set("llama.rope.scaling.attn_factor", 2.0f);
  config = ConfigOf(draft);
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_FLOAT_EQ(config->ropes[0].magnitude, 2.5f);
}

TEST(ModelConfigTest, PartOfAHeadMayBeRotated) {
  TinyModelSpec spec;
  spec.rotary_size = 8;
  const auto config = ConfigOf(testing::MakeTinyModelDraft(spec));
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->ropes[0].rotary_size, 8);
  ASSERT_EQ(config->ropes[0].inverse_frequencies.size(), 4u);
  EXPECT_FLOAT_EQ(config->ropes[0].inverse_frequencies[1], 0.1f);  // 10000^(-2/8)
}

TEST(ModelConfigTest, TheVocabularyMayBePaddedButNeverLonger) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.SetStrings("tokenizer.ggml.tokens", std::vector<std::string>(300, "x"));
  auto config = ConfigOf(draft);
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->vocab_size, 320);
  draft.SetStrings("tokenizer.ggml.tokens", std::vector<std::string>(321, "x"));
  config = ConfigOf(draft);
  EXPECT_EQ(config.status().code(), kInvalid);
  EXPECT_THAT(Message(config.status()), HasSubstr("each of the 321 tokens"));
}

TEST(ModelConfigTest, NeutralValuesOfOtherTraitsAreFine) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.Set("llama.expert_count", uint32_t{0});
  draft.Set("llama.attention.causal", true);
  draft.Set("llama.attention.scale", 0.25f);  // 1 / sqrt(16)
  draft.Set("llama.attention.sliding_window", uint32_t{512});
  draft.Set("llama.attention.value_length", uint32_t{16});
  draft.Set("llama.logit_scale", 1.0f);
  draft.Set("llama.final_logit_softcapping", 0.0f);
  draft.Set("llama.rope.scaling.factor", 0.0f);
  draft.Set("llama.vocab_size", uint32_t{320});
  draft.SetString("llama.rope.scaling.type", "none");
  draft.SetString("llama.tensor_data_layout", "Meta AI original pth");
  draft.SetString("general.type", "model");
  draft.Set("community.key", uint32_t{7});
  draft.AddTensor("community.tensor", {8}, DType::kF32, std::string(32, '\0'));
  const auto config = ConfigOf(draft);
  EXPECT_TRUE(config.ok()) << Message(config.status());
}

struct Case {
  const char* name;
  std::function<void(GgufDraft&)> edit;
  std::vector<std::string> says;
  absl::StatusCode code = kInvalid;
  const char* architecture = "llama";
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class RefusedModelTest : public ::testing::TestWithParam<Case> {};

TEST_P(RefusedModelTest, SaysWhatWasExpectedAndWhatCame) {
  TinyModelSpec spec;
  spec.architecture = GetParam().architecture;
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  const absl::Status whole = ConfigOf(draft).status();
  ASSERT_TRUE(whole.ok()) << Message(whole);
  GetParam().edit(draft);
  const TempFile stored(draft.Bytes());
  const absl::Status status = ConfigOf(stored.path()).status();
  EXPECT_EQ(status.code(), GetParam().code) << Message(status);
  EXPECT_THAT(Message(status), ::testing::StartsWith(stored.path() + ": "));
  for (const std::string& text : GetParam().says) EXPECT_THAT(Message(status), HasSubstr(text));
}

auto Set(std::string key, MetadataValue value) {
  return [key, value](GgufDraft& draft) { draft.Set(key, value); };
}
auto Text(std::string key, std::string value) {
  return [key, value](GgufDraft& draft) { draft.SetString(key, value); };
}
auto Remove(std::string key) {
  return [key](GgufDraft& draft) { draft.Remove(key); };
}
auto RemoveTensor(std::string name) {
  return [name](GgufDraft& draft) { draft.RemoveTensor(name); };
}
auto Reshape(std::string name, std::vector<uint64_t> dims) {
  return [name, dims](GgufDraft& draft) {
    uint64_t bytes = 4;
    for (const uint64_t dim : dims) bytes *= dim;
    GgufDraft::Tensor& tensor = draft.TensorAt(name);
    tensor.dims = dims;
    tensor.bytes.resize(bytes);
  };
}
auto AddTensor(std::string name, uint64_t size) {
  return [name, size](GgufDraft& draft) {
    draft.AddTensor(name, {size}, DType::kF32, std::string(size * 4, '\0'));
  };
}
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

INSTANTIATE_TEST_SUITE_P(
    Architecture, RefusedModelTest,
    ::testing::Values(
        Case{"missing", Remove("general.architecture"), {"'general.architecture'", "missing"}},
        Case{"number", Set("general.architecture", uint32_t{1}), {"expected string, got u32"}},
        Case{"unknown",
             Text("general.architecture", "mamba"),
             {"expected one of 'llama', ", "'qwen2', 'qwen3'", ", got 'mamba'"},
             kUnsupported},
        Case{"long",
             Text("general.architecture", std::string(1 << 20, 'a')),
             {"... (1048576 bytes)"},
             kUnsupported},
        Case{"adapter",
             Text("general.type", "adapter"),
             {"expected 'model', got 'adapter'"},
             kUnsupported},
        Case{"shard", Set("split.count", uint16_t{65535}), {"one of 65535 parts"}, kUnsupported},
        Case{"quantization",
             Set("general.quantization_version", uint32_t{1}),
             {"expected 2, got 1"},
             kUnsupported}));

INSTANTIATE_TEST_SUITE_P(
    Sizes, RefusedModelTest,
    ::testing::Values(
        Case{"heads_0",
             Set("llama.attention.head_count", uint32_t{0}),
             {"'llama.attention.head_count': expected 1 to 1024, got 0", "at byte"}},
        Case{"heads_missing", Remove("llama.attention.head_count"), {"head_count'", "missing"}},
        Case{"heads_each_layer",
             Set("llama.attention.head_count", MetadataArray(std::vector<uint32_t>{4, 4})),
             {"one integer for all layers"},
             kUnsupported},
        Case{"heads_float", Set("llama.attention.head_count", 4.0f), {"an integer, got f32"}},
        Case{"heads_do_not_divide_width",
             Set("llama.attention.head_count", uint32_t{6}),
             {"'llama.embedding_length': expected a multiple of the 6 heads, got 64"}},
        Case{"kv_heads_0",
             Set("llama.attention.head_count_kv", uint32_t{0}),
             {"head_count_kv': expected 1 to 1024"}},
        Case{"kv_heads_do_not_divide",
             Set("llama.attention.head_count_kv", uint32_t{3}),
             {"expected a divisor of the 4 heads, got 3"}},
        Case{"head_size_odd",
             Set("llama.attention.key_length", uint32_t{15}),
             {"'llama.attention.key_length': expected an even head size"}},
        Case{"head_size_2048", Set("llama.attention.key_length", uint32_t{2048}), {"2 to 1024"}},
        Case{"value_length",
             Set("llama.attention.value_length", uint32_t{8}),
             {"'llama.attention.value_length': only the size of a key head, 16", "got 8"},
             kUnsupported},
        Case{"layers_0", Set("llama.block_count", uint32_t{0}), {"expected 1 to 1024, got 0"}},
        Case{"layers_2_31", Set("llama.block_count", uint32_t{0x7FFFFFFF}), {"got 2147483647"}},
        Case{"layers_negative", Set("llama.block_count", int32_t{-1}), {"0 or more, got -1"}},
        Case{"layers_one_more",
             Set("llama.block_count", uint32_t{3}),
             {"'blk.2.attn_norm.weight' (attention norm, layer 2)", "missing"}},
        Case{"layers_one_less",
             Set("llama.block_count", uint32_t{1}),
             {"tensor 'blk.1.attn_norm.weight': expected layers 0 to 0", "got layer 1"}},
        Case{"context_0", Set("llama.context_length", uint32_t{0}), {"expected 1 to 16777216"}},
        Case{"context_2_32", Set("llama.context_length", uint32_t{0xFFFFFFFF}), {"4294967295"}},
        Case{"width_2_31", Set("llama.embedding_length", uint32_t{1u << 31}), {"got 2147483648"}},
        Case{"width_other",
             Set("llama.embedding_length", uint32_t{128}),
             {"'token_embd.weight' (token embedding): expected [128, 320], got [64, 320] F32"}},
        Case{"ffn_0", Set("llama.feed_forward_length", uint32_t{0}), {"feed_forward_length"}},
        Case{"ffn_missing", Remove("llama.feed_forward_length"), {"missing"}},
        Case{"ffn_other",
             Set("llama.feed_forward_length", uint32_t{256}),
             {"'blk.0.ffn_gate.weight' (FFN gate, layer 0): expected [64, 256], got [64, 160]"}},
        Case{"epsilon_missing", Remove("llama.attention.layer_norm_rms_epsilon"), {"missing"}},
        Case{"epsilon_nan", Set("llama.attention.layer_norm_rms_epsilon", kNan), {"got nan"}},
        Case{"epsilon_negative", Set("llama.attention.layer_norm_rms_epsilon", -1.0f), {"got -1"}},
        Case{"vocab_size",
             Set("llama.vocab_size", uint32_t{319}),
             {"'llama.vocab_size': expected the rows of token_embd.weight [64, 320] F32, got "
              "319"}}));

INSTANTIATE_TEST_SUITE_P(
    Rope, RefusedModelTest,
    ::testing::
        Values(Case{"odd",
                    Set("llama.rope.dimension_count", uint32_t{7}),
                    {"expected an even number"}},
               Case{"over_head",
                    Set("llama.rope.dimension_count", uint32_t{32}),
                    {"2 to 16, got 32"}},
               Case{"missing",
                    Remove("llama.rope.dimension_count"),
                    {"dimension_count'", "missing"}},
               Case{"base_0", Set("llama.rope.freq_base", 0.0f), {"finite number above 0, got 0"}},
               Case{"base_nan",
                    Set("llama.rope.freq_base", kNan),
                    {"'llama.rope.freq_base'", "got nan"}},
               Case{"base_inf", Set("llama.rope.freq_base", kInf), {"got inf"}},
               Case{"base_negative", Set("llama.rope.freq_base", -1.0f), {"got -1"}},
               Case{"base_integer",
                    Set("llama.rope.freq_base", uint32_t{10000}),
                    {"f32 or f64, got u32"}},
               Case{"dynamic",
                    Text("llama.rope.scaling.type", "dynamic"),
                    {"'none', 'linear' and 'yarn'", "got 'dynamic'"},
                    kUnsupported},
               Case{"sections",
                    Set("llama.rope.dimension_sections",
                        MetadataArray(std::vector<int32_t>{8, 4, 4, 0})),
                    {"'llama.rope.dimension_sections'", "not known"},
                    kUnsupported},
               Case{"yarn_factor_without_yarn",
                    Set("llama.rope.scaling.yarn_beta_fast", 32.0f),
                    {"'llama.rope.scaling.yarn_beta_fast'", "'rope.scaling.type' is 'yarn'"}},
               Case{
                   "linear_without_factor", Text("llama.rope.scaling.type", "linear"), {"missing"}},
               Case{"factor_without_type",
                    Set("llama.rope.scaling.factor", 2.0f),
                    {"'llama.rope.scaling.type'", "missing"}},
               Case{
                   "two_factors",
                   [](GgufDraft& d) {
                     d.SetString("llama.rope.scaling.type", "linear");
                     d.Set("llama.rope.scaling.factor", 2.0f);
                     d.Set("llama.rope.scale_linear", 4.0f);
                   },
                   {"scale_linear': expected 'rope.scaling.factor', 2, got 4"}},
               Case{"attn_factor",
                    Set("llama.rope.scaling.attn_factor", 1.2f),
                    {"only 1 is supported"},
                    kUnsupported},
               Case{"factors_of_other_size",
                    AddTensor("rope_freqs.weight", 7),
                    {"'rope_freqs.weight': expected [8] F32, got [7] F32"}},
               Case{"factors_0",
                    AddTensor("rope_freqs.weight", 8),
                    {"'rope_freqs.weight': value 0: expected a finite number above 0, got 0"}},
               Case{"long_factors",
                    AddTensor("rope_factors_long.weight", 8),
                    {"'rope_factors_long.weight'", "no place"},
                    kUnsupported}));

INSTANTIATE_TEST_SUITE_P(
    FactsOfFamilies, RefusedModelTest,
    ::testing::Values(
        Case{"gemma2_window_missing",
             Remove("gemma2.attention.sliding_window"),
             {"'gemma2.attention.sliding_window'", "missing"},
             kInvalid,
             "gemma2"},
        Case{"gemma2_window_negative",
             Set("gemma2.attention.sliding_window", int32_t{-1}),
             {"'gemma2.attention.sliding_window'", "got -1"},
             kInvalid,
             "gemma2"},
        Case{"gemma2_softcap_missing",
             Remove("gemma2.attn_logit_softcapping"),
             {"'gemma2.attn_logit_softcapping'", "missing"},
             kInvalid,
             "gemma2"},
        Case{"gemma2_logit_softcap_nan",
             Set("gemma2.final_logit_softcapping", kNan),
             {"'gemma2.final_logit_softcapping'", "got nan"},
             kInvalid,
             "gemma2"},
        Case{"gemma3_logit_softcap_negative",
             Set("gemma3.final_logit_softcapping", -4.0f),
             {"above 0, got -4"},
             kInvalid,
             "gemma3"},
        Case{"gemma3_pattern_short",
             Set("gemma3.attention.sliding_window_pattern",
                 MetadataArray(std::vector<bool>{true, false, true})),
             {"sliding_window_pattern': expected 2 bools, one for each layer, got 3"},
             kInvalid,
             "gemma3"},
        Case{"gemma3_pattern_of_numbers",
             Set("gemma3.attention.sliding_window_pattern",
                 MetadataArray(std::vector<int32_t>{1, 0})),
             {"expected 2 bools, one for each layer, got array of i32"},
             kInvalid,
             "gemma3"},
        Case{"gemma3_pattern_text",
             Text("gemma3.attention.sliding_window_pattern", "LG"),
             {"expected an integer, got string"},
             kInvalid,
             "gemma3"},
        Case{"gemma3_period_2048",
             Set("gemma3.attention.sliding_window_pattern", uint32_t{2048}),
             {"expected 0 to 1024, got 2048"},
             kInvalid,
             "gemma3"},
        Case{"gemma3_window_base_0",
             Set("gemma3.rope.freq_base_swa", 0.0f),
             {"'gemma3.rope.freq_base_swa': expected a finite number above 0, got 0"},
             kInvalid,
             "gemma3"},
        Case{"gemma3_no_post_norm",
             RemoveTensor("blk.1.post_ffw_norm.weight"),
             {"'blk.1.post_ffw_norm.weight' (norm after FFN, layer 1): expected [64]"},
             kInvalid,
             "gemma3"},
        Case{"gemma_bias_of_post_norm",
             AddTensor("blk.0.post_attention_norm.weight", 64),
             {"no place"},
             kUnsupported,
             "gemma"},
        Case{"phi3_qkv_short",
             Reshape("blk.1.attn_qkv.weight", {64, 127}),
             {"'blk.1.attn_qkv.weight' (attention query, key and value, layer 1): expected [64, "
              "128], got [64, 127] F32"},
             kInvalid,
             "phi3"},
        Case{"phi3_half_of_gate_and_up",
             Reshape("blk.0.ffn_up.weight", {64, 160}),
             {"'blk.0.ffn_up.weight' (FFN gate and up, layer 0): expected [64, 320], got [64, "
              "160]"},
             kInvalid,
             "phi3"},
        Case{"phi3_query_too",
             [](GgufDraft& d) {
               d.AddTensor("blk.0.attn_q.weight", {64, 64}, DType::kF32,
                           std::string(64 * 64 * 4, '\0'));
             },
             {"'blk.0.attn_q.weight'", "no place"},
             kUnsupported,
             "phi3"},
        Case{"starcoder2_gate",
             [](GgufDraft& d) {
               d.AddTensor("blk.0.ffn_gate.weight", {64, 160}, DType::kF32,
                           std::string(64 * 160 * 4, '\0'));
             },
             {"'blk.0.ffn_gate.weight'", "no place"},
             kUnsupported,
             "starcoder2"},
        Case{"starcoder2_no_up_bias",
             RemoveTensor("blk.0.ffn_up.bias"),
             {"'blk.0.ffn_up.bias' (FFN up bias, layer 0): expected [160], got none"},
             kInvalid,
             "starcoder2"},
        Case{"starcoder2_no_down_bias",
             RemoveTensor("blk.1.ffn_down.bias"),
             {"'blk.1.ffn_down.bias'", "missing"},
             kInvalid,
             "starcoder2"},
        Case{"starcoder2_no_norm_bias",
             RemoveTensor("output_norm.bias"),
             {"'output_norm.bias' (output norm bias): expected [64], got none"},
             kInvalid,
             "starcoder2"},
        Case{"starcoder2_epsilon_missing",
             Remove("starcoder2.attention.layer_norm_epsilon"),
             {"'starcoder2.attention.layer_norm_epsilon'", "missing"},
             kInvalid,
             "starcoder2"},
        Case{"stablelm_rotary_size_missing",
             Remove("stablelm.rope.dimension_count"),
             {"'stablelm.rope.dimension_count'", "missing"},
             kInvalid,
             "stablelm"},
        Case{"granite_attention_scale_missing",
             Remove("granite.attention.scale"),
             {"'granite.attention.scale'", "missing"},
             kInvalid,
             "granite"},
        Case{"granite_embedding_scale_missing",
             Remove("granite.embedding_scale"),
             {"'granite.embedding_scale'", "missing"},
             kInvalid,
             "granite"},
        Case{"granite_residual_scale_inf",
             Set("granite.residual_scale", kInf),
             {"'granite.residual_scale'", "got inf"},
             kInvalid,
             "granite"},
        Case{"granite_logit_scale_0",
             Set("granite.logit_scale", 0.0f),
             {"'granite.logit_scale'", "above 0, got 0"},
             kInvalid,
             "granite"},
        Case{"granite_finetuned_number",
             Set("granite.rope.scaling.finetuned", uint32_t{1}),
             {"'granite.rope.scaling.finetuned'", "got u32"},
             kInvalid,
             "granite"}));

// Phi 3 with longrope as converters write it, and one change.
auto Longrope(std::function<void(GgufDraft&)> edit) {
  return [edit](GgufDraft& draft) {
    draft.Set("phi3.rope.scaling.original_context_length", uint32_t{128});
    draft.Set("phi3.rope.scaling.attn_factor", 1.19f);
    for (const char* name : {"rope_factors_long.weight", "rope_factors_short.weight"}) {
      draft.AddTensor(name, {8}, DType::kF32,
                      EncodeTensor(DType::kF32, {1, 1, 1, 1.5, 2, 2, 4, 4}));
    }
    edit(draft);
  };
}

INSTANTIATE_TEST_SUITE_P(
    Longrope, RefusedModelTest,
    ::testing::Values(
        Case{"other_type",
             Longrope(Text("phi3.rope.scaling.type", "yarn")),
             {"'phi3.rope.scaling.type': expected 'longrope'", "got 'yarn'"},
             kInvalid,
             "phi3"},
        Case{"original_context_missing",
             Longrope(Remove("phi3.rope.scaling.original_context_length")),
             {"original_context_length'", "missing"},
             kInvalid,
             "phi3"},
        Case{"attn_factor_missing",
             Longrope(Remove("phi3.rope.scaling.attn_factor")),
             {"'phi3.rope.scaling.attn_factor'", "missing"},
             kInvalid,
             "phi3"},
        Case{"long_alone",
             Longrope(RemoveTensor("rope_factors_short.weight")),
             {"'rope_factors_short.weight' (rotary frequency factors of short contexts): expected "
              "[8], got none"},
             kInvalid,
             "phi3"},
        Case{"long_of_other_size",
             Longrope(Reshape("rope_factors_long.weight", {7})),
             {"'rope_factors_long.weight': expected [8] F32, got [7] F32"},
             kInvalid,
             "phi3"},
        Case{"short_0",
             Longrope([](GgufDraft& d) {
               d.TensorAt("rope_factors_short.weight").bytes.replace(4, 4, std::string(4, '\0'));
             }),
             {"'rope_factors_short.weight': value 1: expected a finite number above 0, got 0"},
             kInvalid,
             "phi3"},
        Case{"temperature_without_yarn",
             Set("mistral3.attention.temperature_scale", 0.1f),
             {"'mistral3.attention.temperature_scale': expected it only where"},
             kInvalid,
             "mistral3"},
        Case{"temperature_of_others",
             Set("llama.attention.temperature_scale", 0.1f),
             {"temperature_scale'", "not known"},
             kUnsupported},
        Case{"type_without_factors",
             Text("phi3.rope.scaling.type", "longrope"),
             {"'phi3.rope.scaling.type'", "got 'longrope'"},
             kUnsupported,
             "phi3"}));

// A draft with yarn as converters write it, and one change.
auto Yarn(std::function<void(GgufDraft&)> edit) {
  return [edit](GgufDraft& draft) {
    draft.SetString("llama.rope.scaling.type", "yarn");
    draft.Set("llama.rope.scaling.factor", 4.0f);
    draft.Set("llama.rope.scaling.original_context_length", uint32_t{128});
    edit(draft);
  };
}

INSTANTIATE_TEST_SUITE_P(
    Yarn, RefusedModelTest,
    ::testing::Values(Case{"no_factor",
                           Yarn(Remove("llama.rope.scaling.factor")),
                           {"'llama.rope.scaling.factor'", "missing"}},
                      Case{"factor_below_1",
                           Yarn(Set("llama.rope.scaling.factor", 0.5f)),
                           {"'llama.rope.scaling.factor': expected at least 1 for yarn, got 0.5"}},
                      Case{"no_original_context",
                           Yarn(Remove("llama.rope.scaling.original_context_length")),
                           {"'llama.rope.scaling.original_context_length'", "missing"}},
                      Case{"original_context_0",
                           Yarn(Set("llama.rope.scaling.original_context_length", uint32_t{0})),
                           {"original_context_length': expected 1 to 16777216, got 0"}},
                      Case{"ext_factor",
                           Yarn(Set("llama.rope.scaling.yarn_ext_factor", 0.5f)),
                           {"'llama.rope.scaling.yarn_ext_factor': only 1 is supported, got 0.5"},
                           kUnsupported},
                      Case{"beta_nan",
                           Yarn(Set("llama.rope.scaling.yarn_beta_fast", kNan)),
                           {"yarn_beta_fast'", "got nan"}},
                      Case{"betas_the_other_way_round",
                           Yarn(Set("llama.rope.scaling.yarn_beta_slow", 64.0f)),
                           {"'llama.rope.scaling.yarn_beta_slow'", "got 32 and 64"}},
                      Case{"two_magnitudes",
                           Yarn([](GgufDraft& d) {
                             d.Set("llama.rope.scaling.yarn_attn_factor", 1.1f);
                             d.Set("llama.rope.scaling.yarn_log_multiplier", 1.0f);
                           }),
                           {"yarn_attn_factor'", "got both"}},
                      Case{"attn_factor_0",
                           Yarn(Set("llama.rope.scaling.attn_factor", 0.0f)),
                           {"attn_factor'", "above 0, got 0"}},
                      Case{"factors_too",
                           Yarn([](GgufDraft& d) {
                             d.AddTensor("rope_freqs.weight", {8}, DType::kF32,
                                         EncodeTensor(DType::kF32, std::vector<float>(8, 2.0f)));
                           }),
                           {"'yarn' is not supported beside tensor 'rope_freqs.weight'"},
                           kUnsupported},
                      Case{"base_1",
                           Yarn(Set("llama.rope.freq_base", 1.0f)),
                           {"'llama.rope.freq_base': expected more than 1 for yarn, got 1"}}));

INSTANTIATE_TEST_SUITE_P(
    Traits, RefusedModelTest,
    ::testing::Values(
        Case{"experts",
             Set("llama.expert_count", uint32_t{8}),
             {"'llama.expert_count': only 0 is supported, got 8"},
             kUnsupported},
        Case{"window",
             Set("qwen2.attention.sliding_window", uint32_t{256}),
             {"'qwen2.attention.sliding_window': only none, or at least the context of 512",
              "got 256"},
             kUnsupported,
             "qwen2"},
        Case{"window_pattern",
             Set("llama.attention.sliding_window_pattern", uint32_t{2}),
             {"sliding_window_pattern'", "not known"},
             kUnsupported},
        Case{"window_rope",
             Set("gemma2.rope.freq_base_swa", 10000.0f),
             {"'gemma2.rope.freq_base_swa'", "not known"},
             kUnsupported,
             "gemma2"},
        Case{"parallel_residual",
             [](GgufDraft& d) {
               d.Set("stablelm.use_parallel_residual", true);
               d.RemoveTensor("blk.1.ffn_norm.weight");
             },
             {"'blk.1.ffn_norm.weight' (FFN norm, layer 1): expected [64], got none"},
             kInvalid,
             "stablelm"},
        Case{"attention_scale_a_little_off",
             Set("llama.attention.scale", 0.25001f),
             {"only 0.25 is supported"},
             kUnsupported},
        Case{"logit_softcap_of_gemma",
             Set("gemma.final_logit_softcapping", 30.0f),
             {"only 0 is supported, got 30"},
             kUnsupported,
             "gemma"},
        Case{"attention_scale",
             Set("llama.attention.scale", 0.5f),
             {"only 0.25 is supported"},
             kUnsupported},
        Case{"logit_scale",
             Set("llama.logit_scale", 8.0f),
             {"only 1 is supported, got 8"},
             kUnsupported},
        Case{"softcap", Set("llama.final_logit_softcapping", 30.0f), {"got 30"}, kUnsupported},
        Case{"not_causal", Set("llama.attention.causal", false), {"only true"}, kUnsupported},
        Case{
            "layout", Text("llama.tensor_data_layout", "jploski"), {"got 'jploski'"}, kUnsupported},
        Case{"unknown_fact",
             Set("llama.attention.surprise", uint32_t{1}),
             {"'llama.attention.surprise'", "not known"},
             kUnsupported}));

INSTANTIATE_TEST_SUITE_P(
    Tensors, RefusedModelTest,
    ::testing::Values(
        Case{"none",
             [](GgufDraft& d) { d.tensors.clear(); },
             {"'token_embd.weight'", "missing", "no tensors at all"}},
        Case{"no_norm",
             RemoveTensor("output_norm.weight"),
             {"'output_norm.weight' (output norm): expected [64], got none"}},
        Case{"no_query", RemoveTensor("blk.1.attn_q.weight"), {"attention query, layer 1"}},
        Case{"embedding_transposed",
             Reshape("token_embd.weight", {320, 64}),
             {"320 tokens", "got [320, 64] F32"}},
        Case{"embedding_short",
             Reshape("token_embd.weight", {64, 319}),
             {"each of the 320 tokens in 'tokenizer.ggml.tokens', got [64, 319] F32"}},
        Case{"embedding_of_one", Reshape("token_embd.weight", {64, 1}), {"2 to 1048576 rows"}},
        Case{"head_short",
             Reshape("output.weight", {64, 319}),
             {"'output.weight' (output head): expected [64, 320], got [64, 319] F32"}},
        Case{"down_transposed",
             Reshape("blk.0.ffn_down.weight", {64, 160}),
             {"expected [160, 64], got [64, 160] F32"}},
        Case{"norm_of_two_rows",
             Reshape("output_norm.weight", {32, 2}),
             {"expected [64], got [32, 2] F32"}},
        Case{"norm_quantised",
             [](GgufDraft& d) {
               GgufDraft::Tensor& norm = d.TensorAt("output_norm.weight");
               norm.type = 2;
               norm.bytes.resize(36);
             },
             {"expected [64] F32, F16 or BF16, got [64] Q4_0"},
             kUnsupported},
        Case{"one_bias_of_three",
             AddTensor("blk.0.attn_k.bias", 32),
             {"tensor 'blk.0.attn_k.bias'", "no place"},
             kUnsupported},
        Case{"query_bias_alone",
             AddTensor("blk.0.attn_q.bias", 64),
             {"'blk.0.attn_k.bias' (attention key bias, layer 0): expected [32], got none"}},
        Case{"head_norm", AddTensor("blk.0.attn_q_norm.weight", 16), {"no place"}, kUnsupported},
        Case{"gate_bias", AddTensor("blk.0.ffn_gate.bias", 160), {"no place"}, kUnsupported},
        Case{"experts", AddTensor("blk.0.ffn_gate_inp.weight", 64), {"no place"}, kUnsupported},
        Case{"output_bias", AddTensor("output.bias", 320), {"no place"}, kUnsupported}));

TEST(ModelConfigTest, Qwen2NeedsItsBiasesAndItsBase) {
  TinyModelSpec spec;
  spec.architecture = "qwen2";
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  draft.Remove("qwen2.rope.freq_base");
  EXPECT_THAT(Message(ConfigOf(draft).status()), HasSubstr("'qwen2.rope.freq_base'"));
  draft = testing::MakeTinyModelDraft(spec);
  for (const char* name : {"blk.0.attn_q.bias", "blk.1.attn_q.bias"}) draft.RemoveTensor(name);
  EXPECT_THAT(Message(ConfigOf(draft).status()),
              HasSubstr("'blk.0.attn_q.bias' (attention query bias, layer 0): expected [64], got "
                        "none"));
}

TEST(ModelConfigTest, Qwen3NeedsItsHeadNorms) {
  TinyModelSpec spec;
  spec.architecture = "qwen3";
  spec.head_size = 24;
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  const auto config = ConfigOf(draft);
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_TRUE(config->has_head_norm);
  EXPECT_FALSE(config->has_qkv_bias);
  EXPECT_EQ(config->ropes[0].style, kernels::RopeStyle::kHalfSplit);
  draft.RemoveTensor("blk.1.attn_k_norm.weight");
  EXPECT_THAT(Message(ConfigOf(draft).status()),
              HasSubstr("'blk.1.attn_k_norm.weight' (per-head key norm, layer 1): expected [24]"));
}

TEST(ModelConfigTest, EveryFourthLayerOfSmolLm3RotatesNothing) {
  TinyModelSpec spec;
  spec.architecture = "smollm3";
  spec.layers = 9;
  const auto config = ConfigOf(testing::MakeTinyModelDraft(spec));
  ASSERT_TRUE(config.ok()) << Message(config.status());
  ASSERT_EQ(config->layers.size(), 9u);
  for (size_t i = 0; i < 9; ++i) {
    EXPECT_EQ(config->layers[i].rope, i == 3 || i == 7 ? -1 : 0) << i;
  }
  EXPECT_EQ(config->rope(-1).rotary_size, 0);
  EXPECT_EQ(config->rope(0).rotary_size, 16);
}

absl::StatusOr<ModelConfig> ConfigOfSpec(
    const char* architecture, int layers,
    std::function<void(GgufDraft&)> edit = [](GgufDraft&) {}) {
  TinyModelSpec spec;
  spec.architecture = architecture;
  spec.layers = layers;
  spec.width = 32;
  spec.ffn_width = 32;
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  edit(draft);
  return ConfigOf(draft);
}

std::vector<int32_t> WindowsOf(const ModelConfig& config) {
  std::vector<int32_t> windows;
  for (const LayerTraits& layer : config.layers) windows.push_back(layer.window);
  return windows;
}
std::vector<int32_t> RopesOf(const ModelConfig& config) {
  std::vector<int32_t> ropes;
  for (const LayerTraits& layer : config.layers) ropes.push_back(layer.rope);
  return ropes;
}
using ::testing::Each;
using ::testing::ElementsAre;

TEST(ModelConfigTest, WindowsOfEveryLayer) {
  const auto window = [](uint32_t positions) {
    return Set("llama.attention.sliding_window", positions);
  };
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("llama", 2)), Each(0));
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("llama", 2, window(100))), Each(100));
  // No window that a position could lie outside of.
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("llama", 2, window(512))), Each(0));
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("llama", 2, window(511))), Each(511));
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("llama", 2, window(0))), Each(0));
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("phi3", 2)), Each(0));
  EXPECT_THAT(
      WindowsOf(*ConfigOfSpec("phi3", 2, Set("phi3.attention.sliding_window", uint32_t{33}))),
      Each(33));
  const auto long_context = [](GgufDraft& draft) {
    draft.Set("starcoder2.context_length", uint32_t{16384});
  };
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("starcoder2", 2, long_context)), Each(4096));
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("starcoder2", 2)), Each(0));
}

TEST(ModelConfigTest, WindowsOfSomeLayers) {
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("gemma2", 5)), ElementsAre(128, 0, 128, 0, 128));
  const auto gemma3 = ConfigOfSpec("gemma3", 7);
  ASSERT_TRUE(gemma3.ok()) << Message(gemma3.status());
  EXPECT_THAT(WindowsOf(*gemma3), ElementsAre(128, 128, 128, 128, 128, 0, 128));
  EXPECT_THAT(RopesOf(*gemma3), ElementsAre(1, 1, 1, 1, 1, 0, 1));
  const auto period = [](uint32_t n) { return Set("gemma3.attention.sliding_window_pattern", n); };
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("gemma3", 4, period(3))), ElementsAre(128, 128, 0, 128));
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("gemma3", 4, period(1))), Each(0));
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("gemma3", 4, period(0))), Each(128));
  EXPECT_THAT(WindowsOf(*ConfigOfSpec("gemma3", 3,
                                      Set("gemma3.attention.sliding_window_pattern",
                                          MetadataArray(std::vector<bool>{false, true, false})))),
              ElementsAre(0, 128, 0));
  // A window wider than the context hides nothing, but the rotation stays that of such layers.
  const auto wide =
      ConfigOfSpec("gemma3", 6, Set("gemma3.attention.sliding_window", uint32_t{1024}));
  EXPECT_THAT(WindowsOf(*wide), Each(0));
  EXPECT_THAT(RopesOf(*wide), ElementsAre(1, 1, 1, 1, 1, 0));
  const auto none = ConfigOfSpec("gemma3", 6, Remove("gemma3.attention.sliding_window"));
  EXPECT_THAT(RopesOf(*none), Each(0));
}

TEST(ModelConfigTest, Gemma3HasTwoRopesAndScalesOne) {
  auto config = ConfigOfSpec("gemma3", 2, [](GgufDraft& draft) {
    draft.Set("gemma3.rope.freq_base", 1000000.0f);
    draft.SetString("gemma3.rope.scaling.type", "linear");
    draft.Set("gemma3.rope.scaling.factor", 8.0f);
  });
  ASSERT_TRUE(config.ok()) << Message(config.status());
  ASSERT_EQ(config->ropes.size(), 2u);
  EXPECT_EQ(config->ropes[0].base, 1000000.0f);
  EXPECT_EQ(config->ropes[0].inverse_frequencies[0], 0.125f);
  EXPECT_EQ(config->ropes[1].base, 10000.0f);
  EXPECT_EQ(config->ropes[1].inverse_frequencies[0], 1.0f);
  EXPECT_FLOAT_EQ(config->ropes[1].inverse_frequencies[1], 0.1f);  // 10000^(-2/8)
  EXPECT_EQ(config->rope(1).inverse_frequencies, config->ropes[1].inverse_frequencies.data());
  config = ConfigOfSpec("gemma3", 2, Set("gemma3.rope.freq_base_swa", 16.0f));
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_FLOAT_EQ(config->ropes[1].inverse_frequencies[1], 0.5f);
}

TEST(ModelConfigTest, ScalesAndSoftcapsOfFamilies) {
  const auto gemma = ConfigOfSpec("gemma", 2);
  ASSERT_TRUE(gemma.ok()) << Message(gemma.status());
  EXPECT_FLOAT_EQ(gemma->embedding_scale, std::sqrt(32.0f));
  EXPECT_FLOAT_EQ(gemma->attention_scale, 1.0f / std::sqrt(8.0f));
  EXPECT_EQ(gemma->ffn_activation, kernels::GateActivation::kGeluTanh);
  EXPECT_TRUE(gemma->tied_head);
  const auto gemma2 = ConfigOfSpec("gemma2", 2);
  ASSERT_TRUE(gemma2.ok()) << Message(gemma2.status());
  EXPECT_EQ(gemma2->attention_softcap, 50.0f);
  EXPECT_EQ(gemma2->logit_softcap, 30.0f);
  EXPECT_TRUE(gemma2->has_post_norms);
  const auto gemma3 = ConfigOfSpec("gemma3", 2, Set("gemma3.final_logit_softcapping", 20.0f));
  ASSERT_TRUE(gemma3.ok()) << Message(gemma3.status());
  EXPECT_EQ(gemma3->attention_softcap, 0.0f);
  EXPECT_EQ(gemma3->logit_softcap, 20.0f);
  EXPECT_TRUE(gemma3->has_head_norm);
  const auto granite = ConfigOfSpec("granite", 2);
  ASSERT_TRUE(granite.ok()) << Message(granite.status());
  EXPECT_EQ(granite->attention_scale, 0.125f);
  EXPECT_EQ(granite->embedding_scale, 3.0f);
  EXPECT_EQ(granite->residual_scale, 0.5f);
  EXPECT_EQ(granite->logit_scale, 0.25f);
  EXPECT_THAT(RopesOf(*granite), Each(0));
  EXPECT_THAT(RopesOf(*ConfigOfSpec("granite", 2, Set("granite.rope.scaling.finetuned", false))),
              Each(-1));
}

// The models of 27B: 46 layers of Gemma 2 and 62 of Gemma 3.
TEST(ModelConfigTest, TheLargestGemmasScaleAttentionByTheWidth) {
  const auto own_head_size = [](const char* architecture) {
    TinyModelSpec spec;
    spec.architecture = architecture;
    spec.layers = spec.architecture == "gemma2" ? 46 : 62;
    spec.width = 32;
    spec.ffn_width = 32;
    spec.head_size = 12;
    return ConfigOf(testing::MakeTinyModelDraft(spec));
  };
  for (const char* architecture : {"gemma2", "gemma3"}) {
    const auto config = own_head_size(architecture);
    ASSERT_TRUE(config.ok()) << Message(config.status());
    EXPECT_EQ(config->head_size, 12);
    EXPECT_FLOAT_EQ(config->attention_scale, 1.0f / std::sqrt(32.0f / 4)) << architecture;
  }
}

TEST(ModelConfigTest, LongropeEndsTheContextWhereTheShortFactorsDo) {
  const auto whole = ConfigOfSpec("phi3", 1);
  ASSERT_TRUE(whole.ok()) << Message(whole.status());
  EXPECT_TRUE(whole->notes.empty());
  const auto factors = [](uint32_t original_context) {
    return [original_context](GgufDraft& draft) {
      draft.Set("phi3.rope.scaling.original_context_length", original_context);
      draft.Set("phi3.rope.scaling.attn_factor", 1.19f);
      draft.AddTensor("rope_factors_long.weight", {4}, DType::kF32,
                      EncodeTensor(DType::kF32, {2, 8, 8, 16}));
      draft.AddTensor("rope_factors_short.weight", {4}, DType::kF32,
                      EncodeTensor(DType::kF32, {1, 1.5, 2, 4}));
    };
  };
  auto config = ConfigOfSpec("phi3", 1, factors(128));
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->context_length, 128);
  ASSERT_EQ(config->notes.size(), 1u);
  EXPECT_THAT(config->notes[0], HasSubstr("the context ends at 128 of 512 positions"));
  EXPECT_EQ(config->ropes[0].magnitude, 1.19f);
  const float divisors[] = {1, 1.5, 2, 4};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_FLOAT_EQ(config->ropes[0].inverse_frequencies[i],
                    whole->ropes[0].inverse_frequencies[i] / divisors[i]);
  }
  config = ConfigOfSpec("phi3", 1, factors(512));
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->context_length, 512);
  EXPECT_TRUE(config->notes.empty());
}

TEST(ModelConfigTest, Ministral3sContextEndsWhereItsQueriesWouldBeScaled) {
  const auto config = ConfigOfSpec("mistral3", 1, [](GgufDraft& draft) {
    draft.SetString("mistral3.rope.scaling.type", "yarn");
    draft.Set("mistral3.rope.scaling.factor", 16.0f);
    draft.Set("mistral3.rope.scaling.original_context_length", uint32_t{64});
    draft.Set("mistral3.rope.scaling.yarn_log_multiplier", 1.0f);
    draft.Set("mistral3.attention.temperature_scale", 0.1f);
  });
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->context_length, 64);
  EXPECT_EQ(config->ropes[0].magnitude, 1.0f);
  ASSERT_EQ(config->notes.size(), 1u);
  EXPECT_THAT(config->notes[0], HasSubstr("64 of 512 positions, where the model begins to scale"));
}

using ::testing::IsEmpty;

TEST(ModelConfigTest, FactsThatTheFilesOfPhi3LeaveOut) {
  const auto config_of = [](int layers, uint32_t context, bool long_factors = false) {
    return ConfigOfSpec("phi3", layers, [=](GgufDraft& draft) {
      draft.Remove("phi3.rope.freq_base");
      draft.Remove("phi3.attention.sliding_window");
      draft.Set("phi3.context_length", context);
      if (!long_factors) return;
      draft.Set("phi3.rope.scaling.original_context_length", uint32_t{4096});
      draft.Set("phi3.rope.scaling.attn_factor", 1.19f);
      for (const char* name : {"rope_factors_long.weight", "rope_factors_short.weight"}) {
        draft.AddTensor(name, {4}, DType::kF32, EncodeTensor(DType::kF32, {1, 1, 1, 1}));
      }
    });
  };
  for (const int layers : {32, 40}) {
    const auto config = config_of(layers, 4096);
    ASSERT_TRUE(config.ok()) << Message(config.status());
    EXPECT_EQ(config->ropes[0].base, 10000.0f);
    EXPECT_THAT(WindowsOf(*config), Each(2047));
    EXPECT_THAT(config->notes,
                ElementsAre("the file does not say 'phi3.rope.freq_base': taken as 10000",
                            "the file does not say 'phi3.attention.sliding_window': taken as "
                            "2047"));
  }
  EXPECT_THAT(WindowsOf(*config_of(31, 4096)), Each(0));
  EXPECT_THAT(WindowsOf(*config_of(32, 8192)), Each(0));
  const auto long_context = config_of(32, 131072, true);
  ASSERT_TRUE(long_context.ok()) << Message(long_context.status());
  EXPECT_EQ(long_context->context_length, 4096);
  EXPECT_THAT(WindowsOf(*long_context), Each(0));
  EXPECT_THAT(long_context->notes.back(), HasSubstr("sliding_window': taken as none"));
  EXPECT_THAT(ConfigOfSpec("phi3", 32, Set("phi3.context_length", uint32_t{4096}))->notes,
              IsEmpty());
}

TEST(ModelConfigTest, BasesThatFilesLeaveOut) {
  for (const char* architecture :
       {"llama", "starcoder2", "granite", "stablelm", "exaone", "internlm2", "gemma", "gemma2"}) {
    const std::string key = std::string(architecture) + ".rope.freq_base";
    const auto config = ConfigOfSpec(architecture, 1, Remove(key));
    ASSERT_TRUE(config.ok()) << Message(config.status());
    EXPECT_EQ(config->ropes[0].base, 10000.0f) << architecture;
    EXPECT_EQ(config->notes.empty(), std::string_view(architecture).starts_with("gemma"));
  }
  for (const char* architecture : {"qwen2", "qwen3", "mistral3", "smollm3"}) {
    const std::string key = std::string(architecture) + ".rope.freq_base";
    EXPECT_THAT(Message(ConfigOfSpec(architecture, 1, Remove(key)).status()), HasSubstr(key));
  }
}

// attn_factor of DeepSeek-R1-0528-Qwen3-8B, which Hugging Face ignores.
TEST(ModelConfigTest, TheInverseOfYarnsMagnitudeIsNotUsed) {
  const auto with = [](float magnitude) {
    return ConfigOfSpec("qwen3", 1, [=](GgufDraft& draft) {
      draft.SetString("qwen3.rope.scaling.type", "yarn");
      draft.Set("qwen3.rope.scaling.factor", 4.0f);
      draft.Set("qwen3.rope.scaling.original_context_length", uint32_t{32768});
      draft.Set("qwen3.rope.scaling.yarn_attn_factor", magnitude);
    });
  };
  const auto ignored = with(0.8782488562869419f);
  ASSERT_TRUE(ignored.ok()) << Message(ignored.status());
  EXPECT_FLOAT_EQ(ignored->ropes[0].magnitude, 1.1386294f);
  ASSERT_EQ(ignored->notes.size(), 1u);
  EXPECT_THAT(ignored->notes[0], HasSubstr("yarn_attn_factor' is 0.87824"));
  const auto used = with(0.8785f);
  ASSERT_TRUE(used.ok()) << Message(used.status());
  EXPECT_EQ(used->ropes[0].magnitude, 0.8785f);
  EXPECT_THAT(used->notes, IsEmpty());
}

TEST(ModelConfigTest, EitherEpsilonIsThatOfRmsNorms) {
  const std::string layer = "exaone.attention.layer_norm_epsilon";
  const std::string rms = "exaone.attention.layer_norm_rms_epsilon";
  auto config = ConfigOfSpec("exaone", 1, [&](GgufDraft& draft) {
    draft.Remove(rms);
    draft.Set(layer, 3e-5f);
  });
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->norm_epsilon, 3e-5f);
  config = ConfigOfSpec("exaone", 1, Set(layer, 3e-5f));
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->norm_epsilon, 1e-5f);
  config = ConfigOfSpec("stablelm", 1, Set("stablelm.attention.layer_norm_rms_epsilon", 3e-5f));
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->norm_epsilon, 1e-5f);
  EXPECT_THAT(Message(ConfigOfSpec("exaone", 1, Remove(rms)).status()), HasSubstr(rms));
}

TEST(ModelConfigTest, ZerosOfConvertersMeanNone) {
  const auto capped = ConfigOfSpec("gemma3", 1, Set("gemma3.final_logit_softcapping", 0.0f));
  ASSERT_TRUE(capped.ok()) << Message(capped.status());
  EXPECT_EQ(capped->logit_softcap, 0.0f);
  for (const char* type : {"none", "linear", ""}) {
    const auto scaled = ConfigOfSpec("llama", 1, [&](GgufDraft& draft) {
      if (*type != '\0') draft.SetString("llama.rope.scaling.type", type);
      draft.Set("llama.rope.scaling.factor", 0.0f);
    });
    ASSERT_TRUE(scaled.ok()) << type << ": " << Message(scaled.status());
    EXPECT_EQ(scaled->ropes[0].inverse_frequencies[0], 1.0f) << type;
  }
}

TEST(ModelConfigTest, AttentionScaleMayBeRoundedOtherwise) {
  const float scale = std::nextafter(1.0f / std::sqrt(8.0f), 1.0f);
  const auto config = ConfigOfSpec("llama", 1, Set("llama.attention.scale", scale));
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->attention_scale, 1.0f / std::sqrt(8.0f));
}

TEST(ModelConfigTest, AGemma3WithItsVisionModelIsItsTextModel) {
  const auto with_vision = [](GgufDraft& draft) {
    draft.Set("gemma3.vision.block_count", uint32_t{27});
    draft.Set("gemma3.vision.attention.layer_norm_epsilon", 1e-6f);
    draft.Set("gemma3.mm.tokens_per_image", uint32_t{256});
    draft.AddTensor("v.blk.0.attn_q.weight", {8}, DType::kF32, std::string(32, '\0'));
    draft.AddTensor("mm.mm_input_projection.weight", {8}, DType::kF32, std::string(32, '\0'));
    draft.Remove("gemma3.attention.layer_norm_rms_epsilon");
    draft.Remove("gemma3.rope.freq_base");
  };
  auto config = ConfigOfSpec("gemma3", 2, with_vision);
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->norm_epsilon, 1e-6f);
  EXPECT_EQ(config->ropes[0].base, 1000000.0f);
  EXPECT_EQ(config->ropes[1].base, 10000.0f);
  EXPECT_THAT(config->notes,
              ElementsAre("the file does not say 'gemma3.rope.freq_base': taken as 1000000",
                          "the file does not say 'gemma3.attention.layer_norm_rms_epsilon': taken "
                          "as 1e-06",
                          "the file also holds a vision model, which is not used"));
  config = ConfigOfSpec("gemma3", 2, [&](GgufDraft& draft) {
    with_vision(draft);
    draft.Set("gemma3.rope.global.freq_base", 500000.0f);
    draft.Set("gemma3.rope.local.freq_base", 20000.0f);
  });
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->ropes[0].base, 500000.0f);
  EXPECT_EQ(config->ropes[1].base, 20000.0f);
  EXPECT_THAT(Message(ConfigOfSpec("gemma3", 2,
                                   [&](GgufDraft& draft) {
                                     with_vision(draft);
                                     draft.RemoveTensor("blk.1.attn_q.weight");
                                   })
                          .status()),
              HasSubstr("'blk.1.attn_q.weight'"));
}

TEST(ModelConfigTest, TensorsSayWhatIsFused) {
  const auto phi3 = ConfigOfSpec("phi3", 2);
  ASSERT_TRUE(phi3.ok()) << Message(phi3.status());
  EXPECT_TRUE(phi3->has_fused_qkv);
  EXPECT_TRUE(phi3->has_fused_gate_up);
  const auto starcoder2 = ConfigOfSpec("starcoder2", 2);
  ASSERT_TRUE(starcoder2.ok()) << Message(starcoder2.status());
  EXPECT_FALSE(starcoder2->has_fused_gate_up);
  EXPECT_FALSE(starcoder2->has_ffn_gate);
  EXPECT_TRUE(starcoder2->has_linear_biases);
  EXPECT_TRUE(starcoder2->has_qkv_bias);
  EXPECT_EQ(starcoder2->norm_kind, kernels::NormKind::kLayer);
  const auto stablelm = ConfigOfSpec("stablelm", 2);
  ASSERT_TRUE(stablelm.ok()) << Message(stablelm.status());
  EXPECT_TRUE(stablelm->has_ffn_gate);
  EXPECT_FALSE(stablelm->has_linear_biases);
  EXPECT_FALSE(stablelm->has_qkv_bias);
}

TEST(ModelConfigTest, PlantedBugsChangeTheFactTheyName) {
  TinyModelSpec spec;
  spec.rope_base = 500000.0f;
  const GgufDraft draft = testing::MakeTinyModelDraft(spec);
  const auto right = ConfigOf(draft);
  ASSERT_TRUE(right.ok());
  const auto base = ConfigOf(draft, PlantedBug::kRopeBaseTenThousand);
  ASSERT_TRUE(base.ok());
  EXPECT_EQ(base->ropes[0].base, 10000.0f);
  EXPECT_NE(base->ropes[0].inverse_frequencies[1], right->ropes[0].inverse_frequencies[1]);
  const auto ffn = ConfigOf(draft, PlantedBug::kFfnFourTimesWidth);
  ASSERT_TRUE(ffn.ok());
  EXPECT_EQ(ffn->ffn_width, 256);
  const auto vocabulary = ConfigOf(draft, PlantedBug::kVocabularyUnpadded);
  ASSERT_TRUE(vocabulary.ok());
  EXPECT_EQ(vocabulary->vocab_size, 256);  // 320 is five times 64
  const auto other = ConfigOf(draft, PlantedBug::kKeyBiasDropped);
  ASSERT_TRUE(other.ok());
  EXPECT_EQ(other->ffn_width, right->ffn_width);
}

TEST(ModelConfigTest, GoldenModelsHaveTheFactsTheyWereMadeWith) {
  const std::string folder = SLUICE_GOLDEN_DIR "/tiny/";
  for (const char* name : {"tiny-llama.f32", "tiny-llama.q8_0", "tiny-llama.q4_1"}) {
    const auto config = ConfigOf(folder + name + ".gguf");
    ASSERT_TRUE(config.ok()) << Message(config.status());
    EXPECT_EQ(config->num_layers, 1);
    EXPECT_EQ(config->width, 256);
    EXPECT_EQ(config->num_heads, 8);
    EXPECT_EQ(config->num_kv_heads, 2);
    EXPECT_EQ(config->ffn_width, 512);
    EXPECT_EQ(config->vocab_size, 384);
    EXPECT_FALSE(config->tied_head);
  }
  const auto llama31 = ConfigOf(folder + "tiny-llama31.q8_0.gguf");
  ASSERT_TRUE(llama31.ok()) << Message(llama31.status());
  EXPECT_TRUE(llama31->tied_head);
  EXPECT_EQ(llama31->ropes[0].base, 500000.0f);
  EXPECT_LT(llama31->ropes[0].inverse_frequencies[15], std::pow(500000.0f, -30.0f / 32) * 0.5f);
  const auto odd = ConfigOf(folder + "tiny-odd.f16.gguf");
  ASSERT_TRUE(odd.ok()) << Message(odd.status());
  EXPECT_EQ(odd->architecture, "qwen2");
  EXPECT_EQ(odd->width, 160);
  EXPECT_EQ(odd->num_heads, 5);
  EXPECT_EQ(odd->num_kv_heads, 1);
  EXPECT_EQ(odd->head_size, 32);
  EXPECT_EQ(odd->vocab_size, 509);
  EXPECT_TRUE(odd->has_qkv_bias);
  const auto vocabulary = ConfigOf(folder + "vocab-spm.gguf");
  EXPECT_EQ(vocabulary.status().code(), kInvalid);
}

TEST(ModelConfigTest, SmolLm2) {
  const std::string path = SLUICE_MODELS_DIR "/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there: run fetch_model.sh";
  const auto config = ConfigOf(path);
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->name, "Smollm2 135M 8k Lc100K Mix1 Ep2");
  EXPECT_EQ(config->num_layers, 30);
  EXPECT_EQ(config->width, 576);
  EXPECT_EQ(config->num_heads, 9);
  EXPECT_EQ(config->num_kv_heads, 3);
  EXPECT_EQ(config->head_size, 64);
  EXPECT_EQ(config->ffn_width, 1536);
  EXPECT_EQ(config->vocab_size, 49152);
  EXPECT_EQ(config->context_length, 8192);
  EXPECT_EQ(config->ropes[0].base, 100000.0f);
  EXPECT_EQ(config->norm_epsilon, 1e-5f);
  EXPECT_TRUE(config->tied_head);
}

}  // namespace
}  // namespace sluice::engine
