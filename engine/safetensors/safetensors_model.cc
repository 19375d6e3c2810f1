#include "engine/safetensors/safetensors_model.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/safetensors/tokenizer_facts.h"

namespace sluice::engine {
namespace {

constexpr uint64_t kMaxTemplateBytes = uint64_t{16} << 20;
constexpr std::string_view kTemplateName = "chat_template.jinja";
constexpr std::string_view kToolUseName = "additional_chat_templates/tool_use.jinja";

// Files of old versions keep the rotary frequencies of each layer, which config.json gives anyway.
bool IsHarmless(std::string_view name) { return name.ends_with(".rotary_emb.inv_freq"); }

std::string BaseName(const std::string& path) { return path.substr(path.rfind('/') + 1); }

}  // namespace

void SafetensorsModel::AddText(std::string_view name, std::string_view text) {
  file_.memory_ += std::string(name) + "\n" + std::to_string(text.size()) + "\n";
  file_.memory_ += text;
}

absl::Status SafetensorsModel::AddEntries(std::vector<ModelFile::Entry> entries) {
  for (ModelFile::Entry& entry : entries) {
    if (!file_.entry_index_.emplace(entry.key, file_.entries_.size()).second) {
      return Internal(file_.path_ + ": key " + Quoted(entry.key) + " was derived twice");
    }
    file_.entries_.push_back(std::move(entry));
  }
  return absl::OkStatus();
}

void SafetensorsModel::AddDerived(const DerivedTensor& derived) {
  FileTensor tensor;
  tensor.name = derived.name;
  tensor.type = kernels::DType::kF32;
  tensor.dims = {derived.values.size()};
  tensor.offset = file_.memory_.size();
  tensor.bytes = derived.values.size() * sizeof(float);
  tensor.source = "config.json key 'rope_scaling'";
  file_.memory_.append(reinterpret_cast<const char*>(derived.values.data()), tensor.bytes);
  file_.tensor_index_.emplace(tensor.name, file_.tensors_.size());
  file_.tensors_.push_back(std::move(tensor));
}

absl::Status SafetensorsModel::AddTensor(const SafetensorsShard& shard, const StoredTensor& stored,
                                         const TensorTarget& target, uint64_t shard_begin) {
  const std::string subject = shard.file.path() + ": tensor " + Quoted(stored.name);
  if (!stored.type.has_value()) {
    return Unimplemented(subject + ": dtype: only F32, F16 and BF16 are supported, got " +
                         stored.dtype);
  }
  if (stored.shape.empty() || stored.shape.size() > 2) {
    return InvalidArgument(subject + ": expected a vector or a matrix, got shape " +
                           DimsString(stored.shape));
  }
  FileTensor tensor;
  tensor.name = target.name;
  tensor.added = target.added;
  tensor.type = *stored.type;
  tensor.dims.assign(stored.shape.rbegin(), stored.shape.rend());
  tensor.offset = shard_begin + (stored.begin - shard.header.data_begin);
  tensor.bytes = stored.bytes;
  tensor.source = Quoted(stored.name) + " in " + BaseName(shard.file.path());
  file_.tensor_index_.emplace(tensor.name, file_.tensors_.size());
  file_.tensors_.push_back(std::move(tensor));
  return absl::OkStatus();
}

absl::Status SafetensorsModel::AddTensors(const ConfigFacts& facts,
                                          std::vector<SafetensorsShard> shards) {
  for (SafetensorsShard& shard : shards) {
    for (const StoredTensor& stored : shard.header.tensors) {
      const auto target = facts.targets.find(stored.name);
      if (target == facts.targets.end()) {
        if (IsHarmless(stored.name)) continue;
        return Unimplemented(shard.file.path() + ": tensor " + Quoted(stored.name) + ": " +
                             facts.class_name + " with this config.json has no place for it here");
      }
      RETURN_IF_ERROR(AddTensor(shard, stored, target->second, file_.file_bytes_));
    }
    file_.AddPart(std::move(shard.file), shard.header.data_begin);
  }
  for (const auto& [stored, target] : facts.targets) {
    if (!target.required || file_.tensor_index_.contains(target.name)) continue;
    return InvalidArgument(file_.path_ + ": tensor " + Quoted(stored) +
                           ": expected it in one of the files, got none");
  }
  return absl::OkStatus();
}

// The other files of the tokenizer count only beside tokenizer.json: without it the model takes and
// gives token ids.
absl::Status SafetensorsModel::AddTokenizer(const JsonFile& config) {
  ASSIGN_OR_RETURN(std::optional<JsonFile> tokenizer, ReadJsonFile(file_.path_, "tokenizer.json"));
  if (!tokenizer.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::optional<JsonFile> tokenizer_config,
                   ReadJsonFile(file_.path_, "tokenizer_config.json"));
  ASSIGN_OR_RETURN(const std::optional<JsonFile> special_tokens_map,
                   ReadJsonFile(file_.path_, "special_tokens_map.json"));
  ASSIGN_OR_RETURN(const std::optional<JsonFile> generation_config,
                   ReadJsonFile(file_.path_, "generation_config.json"));
  TokenizerFiles files = {.directory = file_.path_,
                          .tokenizer = *std::move(tokenizer),
                          .chat_template = {},
                          .tool_use_template = {}};
  ASSIGN_OR_RETURN(files.chat_template,
                   ReadTextFile(file_.path_, kTemplateName, kMaxTemplateBytes));
  ASSIGN_OR_RETURN(files.tool_use_template,
                   ReadTextFile(file_.path_, kToolUseName, kMaxTemplateBytes));
  AddText(files.tokenizer.name, files.tokenizer.text);
  if (files.chat_template.has_value()) AddText(kTemplateName, *files.chat_template);
  if (files.tool_use_template.has_value()) AddText(kToolUseName, *files.tool_use_template);
  const auto add = [this](const std::optional<JsonFile>& file) -> const JsonFile* {
    if (!file.has_value()) return nullptr;
    AddText(file->name, file->text);
    return &*file;
  };
  files.tokenizer_config = add(tokenizer_config);
  files.special_tokens_map = add(special_tokens_map);
  files.generation_config = add(generation_config);
  files.config = &config;
  ASSIGN_OR_RETURN(std::vector<ModelFile::Entry> entries, ReadTokenizerFacts(files));
  return AddEntries(std::move(entries));
}

absl::Status SafetensorsModel::Make() {
  file_.format_ = ModelFile::Format::kSafetensors;
  ASSIGN_OR_RETURN(const std::optional<JsonFile> config, ReadJsonFile(file_.path_, "config.json"));
  if (!config.has_value()) {
    return NotFound(file_.path_ +
                    ": expected a directory with config.json and safetensors files, got one "
                    "without config.json");
  }
  AddText(config->name, config->text);
  ASSIGN_OR_RETURN(ConfigFacts facts,
                   ConfigFacts::Read(file_.path_ + "/config.json", config->document));
  RETURN_IF_ERROR(AddEntries(std::move(facts.entries)));
  RETURN_IF_ERROR(AddTokenizer(*config));
  ASSIGN_OR_RETURN(std::vector<SafetensorsShard> shards, OpenShards(file_.path_));
  for (const SafetensorsShard& shard : shards) {
    AddText(BaseName(shard.file.path()), shard.header.json);
  }
  file_.data_offset_ = file_.memory_.size();
  for (const DerivedTensor& derived : facts.tensors) AddDerived(derived);
  file_.file_bytes_ = file_.memory_.size();
  return AddTensors(facts, std::move(shards));
}

absl::StatusOr<std::shared_ptr<const ModelFile>> SafetensorsModel::Open(const std::string& path) {
  std::shared_ptr<ModelFile> file(new ModelFile());
  file->path_ = path;
  while (file->path_.size() > 1 && file->path_.back() == '/') file->path_.pop_back();
  RETURN_IF_ERROR(SafetensorsModel(*file).Make());
  return std::shared_ptr<const ModelFile>(std::move(file));
}

}  // namespace sluice::engine
