#include "engine/model/tensor_places.h"

#include <array>
#include <charconv>
#include <optional>
#include <unordered_set>

#include "engine/base/hash.h"
#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

// Sizes that shapes are made of; the letters of kernels/ops.h.
enum class Extent : uint8_t { kOne, kE, kHD, kGD, kD, kF, kV, kHalfRotary };

enum class Need : uint8_t { kAlways, kWithQkvBias, kWithHeadNorm, kUnlessTied, kOptional };

struct PlaceTraits {
  TensorPart part;
  std::string_view name;  // within the layer, where it belongs to one
  std::string_view role;
  Need need;
  Extent cols;
  Extent rows;  // kOne: a vector
};

constexpr std::array<PlaceTraits, 2> kFirst = {{
    {TensorPart::kTokenEmbedding, "token_embd.weight", "token embedding", Need::kAlways, Extent::kE,
     Extent::kV},
    {TensorPart::kRopeFactors, "rope_freqs.weight", "rotary frequency factors", Need::kOptional,
     Extent::kHalfRotary, Extent::kOne},
}};

constexpr std::array<PlaceTraits, 16> kOfLayer = {{
    {TensorPart::kAttentionNorm, "attn_norm.weight", "attention norm", Need::kAlways, Extent::kE,
     Extent::kOne},
    {TensorPart::kQuery, "attn_q.weight", "attention query", Need::kAlways, Extent::kE,
     Extent::kHD},
    {TensorPart::kKey, "attn_k.weight", "attention key", Need::kAlways, Extent::kE, Extent::kGD},
    {TensorPart::kValue, "attn_v.weight", "attention value", Need::kAlways, Extent::kE,
     Extent::kGD},
    {TensorPart::kQueryBias, "attn_q.bias", "attention query bias", Need::kWithQkvBias, Extent::kHD,
     Extent::kOne},
    {TensorPart::kKeyBias, "attn_k.bias", "attention key bias", Need::kWithQkvBias, Extent::kGD,
     Extent::kOne},
    {TensorPart::kValueBias, "attn_v.bias", "attention value bias", Need::kWithQkvBias, Extent::kGD,
     Extent::kOne},
    {TensorPart::kQueryNorm, "attn_q_norm.weight", "per-head query norm", Need::kWithHeadNorm,
     Extent::kD, Extent::kOne},
    {TensorPart::kKeyNorm, "attn_k_norm.weight", "per-head key norm", Need::kWithHeadNorm,
     Extent::kD, Extent::kOne},
    {TensorPart::kAttentionOutput, "attn_output.weight", "attention output", Need::kAlways,
     Extent::kHD, Extent::kE},
    {TensorPart::kAttentionOutputBias, "attn_output.bias", "attention output bias", Need::kOptional,
     Extent::kE, Extent::kOne},
    {TensorPart::kFfnNorm, "ffn_norm.weight", "FFN norm", Need::kAlways, Extent::kE, Extent::kOne},
    {TensorPart::kGate, "ffn_gate.weight", "FFN gate", Need::kAlways, Extent::kE, Extent::kF},
    {TensorPart::kUp, "ffn_up.weight", "FFN up", Need::kAlways, Extent::kE, Extent::kF},
    {TensorPart::kDown, "ffn_down.weight", "FFN down", Need::kAlways, Extent::kF, Extent::kE},
    {TensorPart::kDownBias, "ffn_down.bias", "FFN down bias", Need::kOptional, Extent::kE,
     Extent::kOne},
}};

constexpr std::array<PlaceTraits, 2> kLast = {{
    {TensorPart::kOutputNorm, "output_norm.weight", "output norm", Need::kAlways, Extent::kE,
     Extent::kOne},
    {TensorPart::kOutput, "output.weight", "output head", Need::kUnlessTied, Extent::kE,
     Extent::kV},
}};

int64_t Size(const ModelConfig& config, Extent extent) {
  switch (extent) {
    case Extent::kOne:
      return 1;
    case Extent::kE:
      return config.width;
    case Extent::kHD:
      return int64_t{config.num_heads} * config.head_size;
    case Extent::kGD:
      return int64_t{config.num_kv_heads} * config.head_size;
    case Extent::kD:
      return config.head_size;
    case Extent::kF:
      return config.ffn_width;
    case Extent::kV:
      return config.vocab_size;
    case Extent::kHalfRotary:
      return config.ropes.empty() ? 0 : config.ropes.front().rotary_size / 2;
  }
  return 0;
}

bool HasPlace(const ModelConfig& config, Need need) {
  switch (need) {
    case Need::kWithQkvBias:
      return config.has_qkv_bias;
    case Need::kWithHeadNorm:
      return config.has_head_norm;
    case Need::kUnlessTied:
      return !config.tied_head;
    case Need::kAlways:
    case Need::kOptional:
      return true;
  }
  return true;
}

void AddPlace(const ModelConfig& config, const PlaceTraits& traits, int layer,
              std::vector<TensorPlace>& places) {
  if (!HasPlace(config, traits.need)) return;
  TensorPlace& place = places.emplace_back();
  place.part = traits.part;
  place.layer = layer;
  place.name = traits.name;
  place.role = traits.role;
  if (layer >= 0) {
    place.name = "blk." + std::to_string(layer) + "." + place.name;
    place.role += ", layer " + std::to_string(layer);
  }
  place.required = traits.need != Need::kOptional;
  place.is_vector = traits.rows == Extent::kOne;
  place.cols = Size(config, traits.cols);
  place.rows = Size(config, traits.rows);
}

bool SameShape(const FileTensor& tensor, const TensorPlace& place) {
  // Trailing dimensions of 1 say nothing: [576] and [576, 1] are the same rows.
  return tensor.cols() == static_cast<uint64_t>(place.cols) &&
         tensor.rows() == static_cast<uint64_t>(place.rows) &&
         (tensor.dims.size() < 2 || tensor.dims[1] == tensor.rows());
}

std::string ExpectedShape(const TensorPlace& place) {
  const auto cols = static_cast<uint64_t>(place.cols);
  return place.is_vector ? DimsString({cols})
                         : DimsString({cols, static_cast<uint64_t>(place.rows)});
}

// The layer of "blk.12.attn_q.weight"; nullopt when the name has none.
std::optional<int> LayerOf(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int layer = 0;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + kPrefix.size(), end, layer);
  if (error != std::errc() || rest == end || *rest != '.' || layer < 0) return std::nullopt;
  return layer;
}

}  // namespace

std::vector<TensorPlace> TensorPlaces(const ModelConfig& config) {
  std::vector<TensorPlace> places;
  for (const PlaceTraits& traits : kFirst) AddPlace(config, traits, -1, places);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    for (const PlaceTraits& traits : kOfLayer) AddPlace(config, traits, layer, places);
  }
  for (const PlaceTraits& traits : kLast) AddPlace(config, traits, -1, places);
  return places;
}

absl::Status CheckTensors(const ModelFile& file, const ModelConfig& config) {
  for (const TensorPlace& place : TensorPlaces(config)) {
    const FileTensor* tensor = file.FindTensor(place.name);
    const std::string subject = file.path() + ": tensor '" + place.name + "' (" + place.role + ")";
    if (tensor == nullptr) {
      if (!place.required) continue;
      return InvalidArgument(subject + ": expected " + ExpectedShape(place) +
                             ", got none: it is "
                             "missing from the file");
    }
    if (!SameShape(*tensor, place)) {
      return InvalidArgument(subject + ": expected " + ExpectedShape(place) + ", got " +
                             tensor->ShapeString() + tensor->At());
    }
    const bool is_float = !kernels::Traits(tensor->type).quantized;
    if (place.is_vector && !is_float) {
      return Unimplemented(subject + ": expected " + ExpectedShape(place) +
                           " F32, F16 or BF16, got " + tensor->ShapeString() + tensor->At());
    }
  }
  return absl::OkStatus();
}

absl::Status CheckNoStrangers(const ModelFile& file, const ModelConfig& config) {
  std::unordered_set<std::string, StringHash, StringEqual> placed;
  for (TensorPlace& place : TensorPlaces(config)) placed.insert(std::move(place.name));
  for (const FileTensor& tensor : file.tensors()) {
    const std::string_view name = tensor.name;
    if (placed.contains(tensor.name)) continue;
    // Old converters kept the rotary frequencies of each layer, which the facts give anyway.
    if (name.ends_with(".attn_rot_embd")) continue;
    const std::string subject = file.path() + ": tensor " + Quoted(name);
    const std::optional<int> layer = LayerOf(name);
    if (layer.has_value() && *layer >= config.num_layers) {
      return InvalidArgument(subject + ": expected layers 0 to " +
                             std::to_string(config.num_layers - 1) + " (key '" +
                             config.architecture + ".block_count'), got layer " +
                             std::to_string(*layer) + tensor.At());
    }
    for (const std::string_view prefix : {"blk.", "output", "token_", "rope_", "position_"}) {
      if (!name.starts_with(prefix)) continue;
      return Unimplemented(subject + ": architecture '" + config.architecture +
                           "' has no place for it here, and without it the model would compute "
                           "something else" +
                           tensor.At());
    }
  }
  return absl::OkStatus();
}

}  // namespace sluice::engine
