#include "engine/model/model_config.h"

#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/model/architecture.h"
#include "engine/model/fact_reader.h"
#include "engine/model/rope_reader.h"
#include "engine/model/tensor_places.h"
#include "engine/model/trait_reader.h"
#include "engine/model_file/model_file.h"
#include "engine/tokenizer/utf8.h"

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

// The name goes to terminals, logs, metrics and clients: general.name where it is fit for them.
std::string ModelName(const ModelFile& file, std::optional<std::string_view> given,
                      std::vector<std::string>& notes) {
  constexpr size_t kMostBytes = 256;
  if (given.has_value() && !given->empty()) {
    if (given->size() <= kMostBytes && IsPrintableUtf8(*given)) return std::string(*given);
    notes.push_back("general.name: expected at most " + std::to_string(kMostBytes) +
                    " bytes of printable UTF-8, got " + Quoted(*given) +
                    "; the file's name is used");
  }
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
  config.name = ModelName(file, name, config.notes);
  FactReader facts(file, config.architecture);
  RETURN_IF_ERROR(ReadSizes(facts, config));
  architecture.ReadTensorTraits(file, config);
  RETURN_IF_ERROR(ReadRopes(file, architecture, facts, config, bug));
  RETURN_IF_ERROR(ReadTraits(architecture, facts, config));
  RETURN_IF_ERROR(ReadVocabulary(file, facts, config));
  const bool has_vision = facts.IgnoreAll("vision."), has_projector = facts.IgnoreAll("mm.");
  if (has_vision || has_projector) {
    config.notes.push_back("the file also holds a vision model, which is not used");
  }
  RETURN_IF_ERROR(facts.CheckAllAsked());
  RETURN_IF_ERROR(CheckTensors(file, config));
  RETURN_IF_ERROR(CheckNoStrangers(file, config));
  // After the checks, which would notice: whoever loads the weights must notice as well.
  PlantBug(bug, config);
  return config;
}

kernels::Rope ModelConfig::rope(int index) const {
  if (index < 0) return {};
  const RopeTable& table = ropes[static_cast<size_t>(index)];
  return {table.style, table.rotary_size, table.inverse_frequencies.data(), table.magnitude};
}

}  // namespace sluice::engine
