// Keys as converters write them for published models, on models of few small tensors: all of them
// load. The values are those of the models, but for sizes of tensors.

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/model/model_config.h"
#include "engine/model_file/model_file.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using testing::GgufDraft;
using testing::TempFile;
using testing::TinyModelSpec;

struct Key {
  std::string name;  // after "ARCHITECTURE."
  MetadataValue value;
};

// One published model: what its file says beside the sizes of its tensors.
struct Published {
  std::string name;
  std::string architecture;
  std::vector<Key> keys;
  std::vector<std::string> absent = {};  // keys that other files of the architecture have
  bool long_rope_factors = false;        // rope_freqs.weight
};
void PrintTo(const Published& model, std::ostream* out) { *out << model.name; }

constexpr const char* kRms = "attention.layer_norm_rms_epsilon";
constexpr const char* kLayer = "attention.layer_norm_epsilon";
constexpr const char* kBase = "rope.freq_base";

std::vector<Published> Models() {
  const auto u32 = [](uint32_t value) { return MetadataValue(value); };
  const auto text = [](const char* value) { return MetadataValue(std::string(value)); };
  return {
      {"Phi_3_mini_4k", "phi3", {{kRms, 1e-5f}}, {kBase, "attention.sliding_window"}},
      {"Phi_3_mini_4k_newer",
       "phi3",
       {{kRms, 1e-5f},
        {kBase, 10000.0f},
        {"rope.scaling.original_context_length", u32(4096)},
        {"attention.sliding_window", u32(2047)}}},
      {"Ministral_3",
       "mistral3",
       {{kRms, 1e-5f},
        {kBase, 1000000.0f},
        {"vocab_size", u32(320)},
        {"attention.key_length", u32(16)},
        {"attention.value_length", u32(16)},
        {"attention.temperature_scale", 0.1f},
        {"rope.scaling.type", text("yarn")},
        {"rope.scaling.factor", 16.0f},
        {"rope.scaling.original_context_length", u32(16384)},
        {"rope.scaling.yarn_beta_fast", 32.0f},
        {"rope.scaling.yarn_beta_slow", 1.0f},
        {"rope.scaling.yarn_log_multiplier", 1.0f}}},
      {"Gemma_3_1b_it",
       "gemma3",
       {{kRms, 1e-6f},
        {kBase, 1000000.0f},
        {"attention.key_length", u32(16)},
        {"attention.value_length", u32(16)},
        {"attention.sliding_window", u32(512)}},
       {"rope.dimension_count"}},
      {"Gemma_3_4b_it",
       "gemma3",
       {{kRms, 1e-6f},
        {kBase, 1000000.0f},
        {"rope.freq_base_swa", 10000.0f},
        {"rope.scaling.type", text("linear")},
        {"rope.scaling.factor", 8.0f},
        {"attention.key_length", u32(16)},
        {"attention.value_length", u32(16)},
        {"attention.sliding_window", u32(1024)}},
       {"rope.dimension_count"}},
      {"Gemma_2_2b",
       "gemma2",
       {{kRms, 1e-6f},
        {"attention.key_length", u32(16)},
        {"attention.value_length", u32(16)},
        {"attn_logit_softcapping", 50.0f},
        {"final_logit_softcapping", 30.0f},
        {"attention.sliding_window", u32(4096)}},
       {kBase, "rope.dimension_count"}},
      {"Granite_3",
       "granite",
       {{kRms, 1e-5f},
        {kBase, 10000.0f},
        {"vocab_size", u32(320)},
        {"attention.scale", 0.0078125f},
        {"embedding_scale", 12.0f},
        {"residual_scale", 0.22f},
        {"logit_scale", 16.0f}}},
      {"Granite_4",
       "granite",
       {{kRms, 1e-5f},
        {kBase, 10000000.0f},
        {"vocab_size", u32(320)},
        {"attention.key_length", u32(16)},
        {"attention.value_length", u32(16)},
        {"attention.scale", 0.0078125f},
        {"embedding_scale", 12.0f},
        {"residual_scale", 0.22f},
        {"logit_scale", 10.0f},
        {"rope.scaling.finetuned", true}}},
      {"StableLM_2_1_6B",
       "stablelm",
       {{kLayer, 1e-5f},
        {kBase, 10000.0f},
        {"rope.dimension_count", u32(4)},
        {"use_parallel_residual", true}}},
      {"StableLM_2_1_6B_older",
       "stablelm",
       {{kLayer, 1e-5f}, {"rope.dimension_count", u32(4)}, {"use_parallel_residual", true}},
       {kBase}},
      {"EXAONE_3_5",
       "exaone",
       {{kLayer, 1e-5f},
        {kBase, 1000000.0f},
        {"attention.key_length", u32(16)},
        {"attention.value_length", u32(16)}},
       {kRms},
       true},
      {"Qwen1_5", "qwen2", {{kRms, 1e-6f}, {kBase, 1e6f}, {"use_parallel_residual", true}}},
      {"Qwen2_5", "qwen2", {{kRms, 1e-6f}, {kBase, 1000000.0f}}, {"rope.dimension_count"}},
      {"Qwen3",
       "qwen3",
       {{kRms, 1e-6f},
        {kBase, 1000000.0f},
        {"attention.key_length", u32(16)},
        {"attention.value_length", u32(16)}},
       {"rope.dimension_count"}},
      {"DeepSeek_R1_0528_Qwen3_8B",
       "qwen3",
       {{kRms, 1e-6f},
        {kBase, 1000000.0f},
        {"attention.key_length", u32(16)},
        {"attention.value_length", u32(16)},
        {"rope.scaling.type", text("yarn")},
        {"rope.scaling.factor", 4.0f},
        {"rope.scaling.original_context_length", u32(32768)},
        {"rope.scaling.yarn_attn_factor", 0.8782488562869419f}},
       {"rope.dimension_count"}},
      {"Llama_3_1",
       "llama",
       {{kRms, 1e-5f},
        {kBase, 500000.0f},
        {"vocab_size", u32(320)},
        {"rope.dimension_count", u32(16)}},
       {},
       true},
      {"Llama_3_2",
       "llama",
       {{kRms, 1e-5f},
        {kBase, 500000.0f},
        {"vocab_size", u32(320)},
        {"attention.key_length", u32(16)},
        {"attention.value_length", u32(16)},
        {"rope.dimension_count", u32(16)}},
       {},
       true},
      {"DeepSeek_R1_Distill_Qwen",
       "qwen2",
       {{kRms, 1e-6f}, {kBase, 10000.0f}},
       {"rope.dimension_count"}},
  };
}

// What any file may hold beside the facts of its architecture.
void AddKeysOfAnyFile(GgufDraft& draft) {
  draft.SetString("general.type", "model");
  draft.SetString("general.basename", "model");
  draft.SetString("general.finetune", "Instruct");
  draft.SetString("general.organization", "Org");
  draft.SetString("general.size_label", "1B");
  draft.SetString("general.license", "apache-2.0");
  draft.SetString("general.license.link", "LICENSE");
  draft.Set("general.base_model.count", uint32_t{1});
  draft.SetString("general.base_model.0.name", "base");
  draft.SetStrings("general.tags", {"text-generation"});
  draft.SetStrings("general.languages", {"en"});
  draft.Set("general.sampling.temp", 0.6f);
  draft.Set("general.sampling.top_k", int32_t{20});
  draft.Set("general.file_type", uint32_t{15});
  draft.Set("general.quantization_version", uint32_t{2});
  draft.SetString("quantize.imatrix.file", "model.imatrix");
  draft.SetString("quantize.imatrix.dataset", "calibration.txt");
  draft.Set("quantize.imatrix.entries_count", int32_t{196});
  draft.Set("quantize.imatrix.chunks_count", int32_t{128});
  draft.Set("split.count", uint16_t{0});
  draft.SetString("tokenizer.chat_template", "{{ messages[0]['content'] }}");
  draft.Set("tokenizer.ggml.padding_token_id", uint32_t{0});
  draft.Set("tokenizer.ggml.unknown_token_id", uint32_t{0});
  draft.Set("tokenizer.ggml.eot_token_id", uint32_t{319});
  draft.Set("tokenizer.ggml.add_eos_token", false);
  draft.Set("tokenizer.ggml.add_space_prefix", false);
}

class ConverterKeysTest : public ::testing::TestWithParam<Published> {};

TEST_P(ConverterKeysTest, Load) {
  const Published& model = GetParam();
  TinyModelSpec spec;
  spec.architecture = model.architecture;
  spec.context_length = 131072;
  if (model.long_rope_factors) spec.rope_factors = std::vector<float>(8, 2.0f);
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  const std::string prefix = model.architecture + ".";
  for (const std::string& name : model.absent) draft.Remove(prefix + name);
  for (const Key& key : model.keys) {
    if (const auto* text = std::get_if<std::string>(&key.value)) {
      draft.SetString(prefix + key.name, *text);
    } else {
      draft.Set(prefix + key.name, key.value);
    }
  }
  AddKeysOfAnyFile(draft);
  const TempFile stored(draft.Bytes());
  const auto file = ModelFile::Open(stored.path());
  ASSERT_TRUE(file.ok()) << Message(file.status());
  const auto config = ModelConfig::FromFile(**file);
  ASSERT_TRUE(config.ok()) << Message(config.status());
  EXPECT_EQ(config->architecture, model.architecture);
}

INSTANTIATE_TEST_SUITE_P(Published, ConverterKeysTest, ::testing::ValuesIn(Models()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sluice::engine
