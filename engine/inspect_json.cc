#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "engine/inspection.h"

namespace sluice::engine {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kElements = 16;  // of an array

Json ValueJson(const MetadataValue& value) {
  Json out;
  out["type"] = TypeName(value);
  std::visit(
      [&out](const auto& held) {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, MetadataArray>) {
          std::visit(
              [&out](const auto& elements) {
                using Element = typename std::decay_t<decltype(elements)>::value_type;
                out["length"] = elements.size();
                Json first = Json::array();
                for (size_t i = 0; i < std::min(elements.size(), kElements); ++i) {
                  first.push_back(static_cast<Element>(elements[i]));
                }
                out["first"] = std::move(first);
              },
              held);
        } else {
          out["value"] = held;
        }
      },
      value);
  return out;
}

Json FactsJson(const Inspection& inspection) {
  Json facts;
  facts["parameters"] = inspection.num_parameters;
  if (!inspection.config.has_value()) return facts;
  const ModelConfig& config = *inspection.config;
  facts["name"] = config.name;
  facts["layers"] = config.num_layers;
  facts["width"] = config.width;
  facts["heads"] = config.num_heads;
  facts["kv_heads"] = config.num_kv_heads;
  facts["head_size"] = config.head_size;
  facts["ffn_width"] = config.ffn_width;
  facts["vocab_size"] = config.vocab_size;
  facts["context_length"] = config.context_length;
  facts["norm_epsilon"] = config.norm_epsilon;
  const RopeTable& rope = config.ropes.front();
  facts["rope_style"] =
      rope.style == kernels::RopeStyle::kInterleaved ? "interleaved" : "half-split";
  facts["rope_base"] = rope.base;
  facts["rotary_size"] = rope.rotary_size;
  std::vector<int32_t> windows;
  for (const LayerTraits& layer : config.layers) windows.push_back(layer.window);
  facts["windows"] = std::move(windows);
  facts["notes"] = config.notes;
  facts["qkv_bias"] = config.has_qkv_bias;
  facts["tied_head"] = config.tied_head;
  return facts;
}

Json TokenizerJson(const Inspection& inspection) {
  if (inspection.tokenizer == nullptr) return nullptr;
  const Tokenizer& tokenizer = *inspection.tokenizer;
  const auto id = [](const std::optional<TokenId>& token) {
    return token.has_value() ? Json(*token) : Json();
  };
  Json out;
  out["model"] = tokenizer.model();
  out["pre"] = tokenizer.pre();
  out["tokens"] = tokenizer.vocab_size();
  out["bos"] = id(tokenizer.bos());
  out["eos"] = id(tokenizer.eos());
  out["adds_bos"] = tokenizer.adds_bos();
  out["adds_eos"] = tokenizer.adds_eos();
  out["end_of_generation"] = tokenizer.end_of_generation();
  out["has_chat_template"] = !tokenizer.chat_template().empty();
  out["has_tool_use_template"] = !tokenizer.tool_use_template().empty();
  out["warnings"] = inspection.tokenizer_warnings;
  return out;
}

}  // namespace

std::string InspectionJson(const Inspection& inspection) {
  const ModelFile& file = *inspection.file;
  Json out;
  out["path"] = file.path();
  const bool is_gguf = file.format() == ModelFile::Format::kGguf;
  out["format"] = is_gguf ? "gguf" : "safetensors";
  out["files"] = file.FileNames();
  if (is_gguf) {
    out["version"] = file.version();
    out["alignment"] = file.alignment();
  }
  out["file_bytes"] = file.file_bytes();
  const auto architecture = file.GetString("general.architecture");
  out["architecture"] =
      architecture.ok() && architecture->has_value() ? Json(**architecture) : Json();
  out["facts"] = FactsJson(inspection);
  // push_back, not operator[]: keys are unique already, and looking each up among those before it
  // would take quadratic time.
  Json::object_t metadata;
  for (const ModelFile::Entry& entry : file.entries()) {
    metadata.push_back({entry.key, ValueJson(entry.value)});
  }
  out["metadata"] = std::move(metadata);
  Json tensors = Json::array();
  for (size_t i = 0; i < file.tensors().size(); ++i) {
    const FileTensor& tensor = file.tensors()[i];
    tensors.push_back({{"name", tensor.name},
                       {"shape", tensor.dims},
                       {"type", kernels::Name(tensor.type)},
                       {"offset", tensor.offset},
                       {"bytes", tensor.bytes},
                       {"role", inspection.roles.present[i].role}});
    if (!tensor.source.empty()) tensors.back()["source"] = tensor.source;
    if (tensor.added != 0.0f) tensors.back()["added"] = tensor.added;
  }
  out["tensors"] = std::move(tensors);
  out["missing"] = inspection.roles.missing;
  out["unused"] = inspection.roles.unused;
  out["tokenizer"] = TokenizerJson(inspection);
  out["problems"] = inspection.problems;
  // Pieces and names may be any bytes; JSON is UTF-8.
  return out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace sluice::engine
