#include "engine/model/model_config.h"

#include <cmath>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/model/architecture.h"
#include "engine/model/fact_reader.h"
#include "engine/model/tensor_places.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {
namespace {

constexpr int32_t kMaxLayers = 1024;
constexpr int32_t kMaxHeads = 1024;
constexpr int32_t kMaxHeadSize = 1024;
constexpr int32_t kMaxWidth = 1 << 20;
constexpr int32_t kMaxFfnWidth = 1 << 24;
constexpr int32_t kMaxContext = 1 << 24;
constexpr int32_t kMaxVocabulary = 1 << 20;

// Files that are no whole model by themselves.
absl::Status CheckIsWholeModel(const ModelFile& file) {
  ASSIGN_OR_RETURN(const std::optional<std::string_view> type, file.GetString("general.type"));
  if (type.value_or("model") != "model") {
    return Unimplemented(file.path() + ": key 'general.type': expected 'model', got " +
                         Quoted(*type) + file.At("general.type"));
  }
  ASSIGN_OR_RETURN(const std::optional<uint64_t> shards, file.GetUint("split.count"));
  if (shards.value_or(0) > 1) {
    return Unimplemented(file.path() +
                         ": key 'split.count': expected a model in one file, got one "
                         "of " +
                         std::to_string(*shards) + " parts" + file.At("split.count"));
  }
  ASSIGN_OR_RETURN(const std::optional<uint64_t> part, file.GetUint("split.no"));
  if (part.value_or(0) != 0) {
    return InvalidArgument(file.path() +
                           ": key 'split.no': expected 0 in a model of one file, got " +
                           std::to_string(*part) + file.At("split.no"));
  }
  ASSIGN_OR_RETURN(const std::optional<uint64_t> version,
                   file.GetUint("general.quantization_version"));
  if (version.value_or(2) != 2) {
    return Unimplemented(file.path() + ": key 'general.quantization_version': expected 2, got " +
                         std::to_string(*version) + file.At("general.quantization_version"));
  }
  return absl::OkStatus();
}

absl::Status ReadSizes(FactReader& facts, ModelConfig& config) {
  ASSIGN_OR_RETURN(config.num_layers, facts.Count("block_count", 1, kMaxLayers));
  ASSIGN_OR_RETURN(config.width, facts.Count("embedding_length", 1, kMaxWidth));
  ASSIGN_OR_RETURN(config.ffn_width, facts.Count("feed_forward_length", 1, kMaxFfnWidth));
  ASSIGN_OR_RETURN(config.context_length, facts.Count("context_length", 1, kMaxContext));
  ASSIGN_OR_RETURN(config.num_heads, facts.Count("attention.head_count", 1, kMaxHeads));
  // The format: no such key means as many key/value heads as heads.
  ASSIGN_OR_RETURN(const std::optional<int32_t> kv_heads,
                   facts.OptionalCount("attention.head_count_kv", 1, kMaxHeads));
  config.num_kv_heads = kv_heads.value_or(config.num_heads);
  if (config.num_heads % config.num_kv_heads != 0) {
    return facts.Bad("attention.head_count_kv",
                     "expected a divisor of the " + std::to_string(config.num_heads) +
                         " heads, got " + std::to_string(config.num_kv_heads));
  }
  ASSIGN_OR_RETURN(const std::optional<int32_t> key_length,
                   facts.OptionalCount("attention.key_length", 2, kMaxHeadSize));
  if (!key_length.has_value() && config.width % config.num_heads != 0) {
    return facts.Bad("embedding_length", "expected a multiple of the " +
                                             std::to_string(config.num_heads) + " heads, got " +
                                             std::to_string(config.width));
  }
  config.head_size = key_length.value_or(config.width / config.num_heads);
  if (config.head_size % 2 != 0 || config.head_size > kMaxHeadSize) {
    return facts.Bad(key_length.has_value() ? "attention.key_length" : "embedding_length",
                     "expected an even head size of at most " + std::to_string(kMaxHeadSize) +
                         ", got " + std::to_string(config.head_size));
  }
  config.attention_scale = 1.0f / std::sqrt(static_cast<float>(config.head_size));
  ASSIGN_OR_RETURN(config.norm_epsilon, facts.Positive("attention.layer_norm_rms_epsilon"));
  return absl::OkStatus();
}

// Traits of related models that Forward has no code for, and keys that change nothing.
absl::Status RefuseOtherTraits(const Architecture& architecture, FactReader& facts,
                               const ModelConfig& config) {
  ASSIGN_OR_RETURN(const std::optional<int32_t> value_length,
                   facts.OptionalCount("attention.value_length", 1, kMaxHeadSize));
  if (value_length.value_or(config.head_size) != config.head_size) {
    return facts.Unsupported("attention.value_length",
                             "only the size of a key head, " + std::to_string(config.head_size) +
                                 ", is supported, got " + std::to_string(*value_length));
  }
  RETURN_IF_ERROR(facts.OnlyNumber("expert_count", 0));
  RETURN_IF_ERROR(facts.OnlyNumber("expert_used_count", 0));
  ASSIGN_OR_RETURN(const std::optional<int32_t> window,
                   facts.OptionalCount("attention.sliding_window", 0, INT32_MAX));
  if (window.value_or(0) != 0 && *window < config.context_length) {
    return facts.Unsupported("attention.sliding_window", "only none, or at least the context of " +
                                                             std::to_string(config.context_length) +
                                                             ", is supported, got " +
                                                             std::to_string(*window));
  }
  RETURN_IF_ERROR(facts.OnlyNumber("attention.scale", config.attention_scale));
  for (const char* name : {"logit_scale", "residual_scale", "embedding_scale"}) {
    RETURN_IF_ERROR(facts.OnlyNumber(name, 1));
  }
  for (const char* name : {"attn_logit_softcapping", "final_logit_softcapping",
                           "attention.max_alibi_bias", "attention.clamp_kqv", "pooling_type"}) {
    RETURN_IF_ERROR(facts.OnlyNumber(name, 0));
  }
  RETURN_IF_ERROR(facts.OnlyBool("attention.causal", true));
  RETURN_IF_ERROR(facts.OnlyBool("use_parallel_residual", false));
  ASSIGN_OR_RETURN(const std::optional<std::string_view> layout,
                   facts.OptionalText("tensor_data_layout"));
  if (layout.has_value() && *layout != architecture.data_layout) {
    return facts.Unsupported("tensor_data_layout", "only '" +
                                                       std::string(architecture.data_layout) +
                                                       "' is supported, got " + Quoted(*layout));
  }
  return absl::OkStatus();
}

// The factor that linear scaling divides frequencies by; 1 without scaling.
absl::StatusOr<float> ReadLinearScaling(FactReader& facts) {
  // Where the model was scaled from, and whether it was trained on: of no consequence to linear
  // scaling or none.
  facts.Ignore("rope.scaling.original_context_length");
  facts.Ignore("rope.scaling.finetuned");
  RETURN_IF_ERROR(facts.OnlyNumber("rope.scaling.attn_factor", 1));
  ASSIGN_OR_RETURN(const std::optional<std::string_view> type,
                   facts.OptionalText("rope.scaling.type"));
  ASSIGN_OR_RETURN(const std::optional<float> factor,
                   facts.OptionalPositive("rope.scaling.factor"));
  ASSIGN_OR_RETURN(const std::optional<float> old_factor,
                   facts.OptionalPositive("rope.scale_linear"));
  if (!type.has_value()) {
    if (factor.value_or(1.0f) != 1.0f) {
      return facts.Bad("rope.scaling.type", "expected one, since 'rope.scaling.factor' is " +
                                                NumberString(*factor) +
                                                ", got none: it is missing from the file");
    }
    return old_factor.value_or(1.0f);
  }
  if (*type != "none" && *type != "linear") {
    return facts.Unsupported("rope.scaling.type",
                             "only 'none' and 'linear' are supported, got " + Quoted(*type));
  }
  const float scaling = factor.value_or(1.0f);
  if (*type == "none" && scaling != 1.0f) {
    return facts.Bad(
        "rope.scaling.factor",
        "expected 1, since 'rope.scaling.type' is 'none', got " + NumberString(scaling));
  }
  if (*type == "linear" && !factor.has_value()) {
    return facts.Bad("rope.scaling.factor",
                     "expected a finite number above 0, got none: it is missing from the file");
  }
  if (old_factor.value_or(scaling) != scaling) {
    return facts.Bad("rope.scale_linear", "expected 'rope.scaling.factor', " +
                                              NumberString(scaling) + ", got " +
                                              NumberString(*old_factor));
  }
  return scaling;
}

// Divisors of the frequencies [rotary / 2], as Llama 3.1 files have them; empty when the file has
// none.
absl::StatusOr<std::vector<float>> ReadRopeFactors(const ModelFile& file, int32_t rotary_size) {
  const FileTensor* tensor = file.FindTensor("rope_freqs.weight");
  if (tensor == nullptr) return std::vector<float>();
  std::vector<float> factors(static_cast<size_t>(rotary_size / 2));
  const std::string subject = file.path() + ": tensor 'rope_freqs.weight': ";
  if (tensor->type != kernels::DType::kF32 || tensor->cols() * tensor->rows() != factors.size()) {
    return InvalidArgument(subject + "expected " + DimsString({factors.size()}) + " F32, got " +
                           tensor->ShapeString() + tensor->At());
  }
  RETURN_IF_ERROR(file.Read(tensor->offset, std::as_writable_bytes(std::span(factors))));
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!std::isfinite(factors[i]) || factors[i] <= 0.0f) {
      return InvalidArgument(subject + "value " + std::to_string(i) +
                             ": expected a finite number above 0, got " + NumberString(factors[i]) +
                             " (at byte " + std::to_string(tensor->offset + 4 * i) + ")");
    }
  }
  return factors;
}

absl::Status ReadRope(const ModelFile& file, const Architecture& architecture, FactReader& facts,
                      ModelConfig& config, kernels::PlantedBug bug) {
  config.rope_style = architecture.rope_style;
  ASSIGN_OR_RETURN(const std::optional<float> base, facts.OptionalPositive("rope.freq_base"));
  // Llama files older than the key mean the constant of the first Llama models.
  if (!base.has_value() && architecture.default_rope_base == 0.0f) {
    return facts.Bad("rope.freq_base",
                     "expected a finite number above 0, got none: it is missing from the file");
  }
  config.rope_base = base.value_or(architecture.default_rope_base);
  if (kernels::IsPlanted(bug, kernels::PlantedBug::kRopeBaseTenThousand)) {
    config.rope_base = 10000.0f;
  }
  ASSIGN_OR_RETURN(const std::optional<int32_t> rotary,
                   facts.OptionalCount("rope.dimension_count", 2, config.head_size));
  if (!rotary.has_value() && architecture.needs_rotary_size) {
    return facts.Bad("rope.dimension_count", "expected 2 to " + std::to_string(config.head_size) +
                                                 ", got none: it is missing from the file");
  }
  config.rotary_size = rotary.value_or(config.head_size);
  if (config.rotary_size % 2 != 0) {
    return facts.Bad("rope.dimension_count",
                     "expected an even number, got " + std::to_string(config.rotary_size));
  }
  ASSIGN_OR_RETURN(const float scaling, ReadLinearScaling(facts));
  ASSIGN_OR_RETURN(const std::vector<float> factors, ReadRopeFactors(file, config.rotary_size));
  const auto rotary_values = static_cast<float>(config.rotary_size);
  for (int32_t i = 0; i < config.rotary_size / 2; ++i) {
    // All in f32, as the reference implementation computes its table.
    const float exponent = static_cast<float>(2 * i) / rotary_values;
    float frequency = 1.0f / std::pow(config.rope_base, exponent);
    if (!factors.empty()) frequency /= factors[static_cast<size_t>(i)];
    frequency /= scaling;
    if (!std::isfinite(frequency)) {
      return facts.Bad("rope.freq_base", "expected finite rotary frequencies, got " +
                                             NumberString(frequency) + " for pair " +
                                             std::to_string(i));
    }
    config.inverse_frequencies.push_back(frequency);
  }
  return absl::OkStatus();
}

// Rows of the embedding decide; what else the file says about the vocabulary must agree.
absl::Status ReadVocabulary(const ModelFile& file, FactReader& facts, ModelConfig& config) {
  const std::string subject = file.path() + ": tensor 'token_embd.weight'";
  const FileTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr) {
    return InvalidArgument(subject + ": expected " + std::to_string(config.width) +
                           " values for each token, got none: it is missing from the file" +
                           (file.tensors().empty() ? ", which holds no tensors at all" : ""));
  }
  if (embedding->rows() < 2 || embedding->rows() > kMaxVocabulary) {
    return InvalidArgument(subject + ": expected 2 to " + std::to_string(kMaxVocabulary) +
                           " rows, got " + embedding->ShapeString() + embedding->At());
  }
  config.vocab_size = static_cast<int32_t>(embedding->rows());
  ASSIGN_OR_RETURN(const std::optional<int32_t> said,
                   facts.OptionalCount("vocab_size", 0, INT32_MAX));
  if (said.value_or(config.vocab_size) != config.vocab_size) {
    return facts.Bad("vocab_size", "expected the rows of token_embd.weight " +
                                       embedding->ShapeString() + ", got " + std::to_string(*said));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string>* tokens,
                   file.GetStrings("tokenizer.ggml.tokens"));
  if (tokens != nullptr && tokens->size() > embedding->rows()) {
    return InvalidArgument(
        subject + ": expected a row for each of the " + std::to_string(tokens->size()) +
        " tokens in 'tokenizer.ggml.tokens', got " + embedding->ShapeString() + embedding->At());
  }
  return absl::OkStatus();
}

std::string ModelName(const ModelFile& file, std::optional<std::string_view> given) {
  if (given.has_value() && !given->empty()) return std::string(*given);
  const std::string& path = file.path();
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

void PlantBug(kernels::PlantedBug bug, ModelConfig& config) {
  if (kernels::IsPlanted(bug, kernels::PlantedBug::kFfnFourTimesWidth)) {
    config.ffn_width = 4 * config.width;
  }
  if (kernels::IsPlanted(bug, kernels::PlantedBug::kVocabularyUnpadded)) {
    const int32_t padding = config.vocab_size % 64;
    config.vocab_size -= padding == 0 ? 64 : padding;
  }
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::FromFile(const ModelFile& file, kernels::PlantedBug bug) {
  ASSIGN_OR_RETURN(const Architecture architecture, Architecture::Of(file));
  RETURN_IF_ERROR(CheckIsWholeModel(file));
  ModelConfig config;
  config.architecture = architecture.name;
  ASSIGN_OR_RETURN(const std::optional<std::string_view> name, file.GetString("general.name"));
  config.name = ModelName(file, name);
  FactReader facts(file, config.architecture);
  RETURN_IF_ERROR(ReadSizes(facts, config));
  RETURN_IF_ERROR(RefuseOtherTraits(architecture, facts, config));
  RETURN_IF_ERROR(ReadRope(file, architecture, facts, config, bug));
  RETURN_IF_ERROR(ReadVocabulary(file, facts, config));
  RETURN_IF_ERROR(facts.CheckAllAsked());
  architecture.ReadTensorTraits(file, config);
  RETURN_IF_ERROR(CheckTensors(file, config));
  RETURN_IF_ERROR(CheckNoStrangers(file, config));
  // After the checks, which would notice: whoever loads the weights must notice as well.
  PlantBug(bug, config);
  return config;
}

}  // namespace sluice::engine
