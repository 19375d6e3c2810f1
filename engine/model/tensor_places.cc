#include "engine/model/tensor_places.h"

#include <charconv>
#include <optional>
#include <unordered_set>

#include "engine/base/hash.h"
#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

// Sizes that shapes are made of; the letters of kernels/ops.h.
enum class Extent : uint8_t {
  kNone,
  kOne,
  kE,
  kHD,
  kHDAndGD,
  kQkv,
  kGD,
  kD,
  kF,
  k2F,
  kV,
  kHalfRotary
};

enum class Need : uint8_t {
  kAlways,
  kOptional,
  kUnlessTied,
  kLongFactors,
  kNormBias,
  kPostNorms,
  kHeadNorm,
  kSplitQkv,
  kFusedQkv,
  kQkvBias,
  kLinearBias,          // has a place in models with biases everywhere
  kOptionalLinearBias,  // has a place in any, and is there in models with biases everywhere
  kGate,
  kUp,
  kFusedGateUp,
};

struct PlaceTraits {
  TensorPart part;
  std::string_view name;  // within the layer, where it belongs to one
  std::string_view role;
  Need need;
  Extent cols;
  Extent rows = Extent::kOne;  // kOne: a vector
  // Where the file's tensor has more rows than the place: how many, and those before its own.
  Extent file_rows = Extent::kNone;
  Extent first_row = Extent::kNone;
};

using enum TensorPart;

constexpr PlaceTraits kFirst[] = {
    {kTokenEmbedding, "token_embd.weight", "token embedding", Need::kAlways, Extent::kE,
     Extent::kV},
    {kRopeFactors, "rope_freqs.weight", "rotary frequency factors", Need::kOptional,
     Extent::kHalfRotary},
    {kRopeFactorsLong, "rope_factors_long.weight", "rotary frequency factors of long contexts",
     Need::kLongFactors, Extent::kHalfRotary},
    {kRopeFactorsShort, "rope_factors_short.weight", "rotary frequency factors of short contexts",
     Need::kLongFactors, Extent::kHalfRotary},
};

constexpr std::string_view kQkvName = "attn_qkv.weight";
constexpr std::string_view kQkvRole = "attention query, key and value";
constexpr std::string_view kGateUpName = "ffn_up.weight";
constexpr std::string_view kGateUpRole = "FFN gate and up";

constexpr PlaceTraits kOfLayer[] = {
    {kAttentionNorm, "attn_norm.weight", "attention norm", Need::kAlways, Extent::kE},
    {kAttentionNormBias, "attn_norm.bias", "attention norm bias", Need::kNormBias, Extent::kE},
    {kQuery, "attn_q.weight", "attention query", Need::kSplitQkv, Extent::kE, Extent::kHD},
    {kKey, "attn_k.weight", "attention key", Need::kSplitQkv, Extent::kE, Extent::kGD},
    {kValue, "attn_v.weight", "attention value", Need::kSplitQkv, Extent::kE, Extent::kGD},
    {kQuery, kQkvName, kQkvRole, Need::kFusedQkv, Extent::kE, Extent::kHD, Extent::kQkv},
    {kKey, kQkvName, kQkvRole, Need::kFusedQkv, Extent::kE, Extent::kGD, Extent::kQkv, Extent::kHD},
    {kValue, kQkvName, kQkvRole, Need::kFusedQkv, Extent::kE, Extent::kGD, Extent::kQkv,
     Extent::kHDAndGD},
    {kQueryBias, "attn_q.bias", "attention query bias", Need::kQkvBias, Extent::kHD},
    {kKeyBias, "attn_k.bias", "attention key bias", Need::kQkvBias, Extent::kGD},
    {kValueBias, "attn_v.bias", "attention value bias", Need::kQkvBias, Extent::kGD},
    {kQueryNorm, "attn_q_norm.weight", "per-head query norm", Need::kHeadNorm, Extent::kD},
    {kKeyNorm, "attn_k_norm.weight", "per-head key norm", Need::kHeadNorm, Extent::kD},
    {kAttentionOutput, "attn_output.weight", "attention output", Need::kAlways, Extent::kHD,
     Extent::kE},
    {kAttentionOutputBias, "attn_output.bias", "attention output bias", Need::kOptionalLinearBias,
     Extent::kE},
    {kAttentionPostNorm, "post_attention_norm.weight", "norm after attention", Need::kPostNorms,
     Extent::kE},
    {kFfnNorm, "ffn_norm.weight", "FFN norm", Need::kAlways, Extent::kE},
    {kFfnNormBias, "ffn_norm.bias", "FFN norm bias", Need::kNormBias, Extent::kE},
    {kGate, "ffn_gate.weight", "FFN gate", Need::kGate, Extent::kE, Extent::kF},
    {kUp, "ffn_up.weight", "FFN up", Need::kUp, Extent::kE, Extent::kF},
    {kGate, kGateUpName, kGateUpRole, Need::kFusedGateUp, Extent::kE, Extent::kF, Extent::k2F},
    {kUp, kGateUpName, kGateUpRole, Need::kFusedGateUp, Extent::kE, Extent::kF, Extent::k2F,
     Extent::kF},
    {kUpBias, "ffn_up.bias", "FFN up bias", Need::kLinearBias, Extent::kF},
    {kDown, "ffn_down.weight", "FFN down", Need::kAlways, Extent::kF, Extent::kE},
    {kDownBias, "ffn_down.bias", "FFN down bias", Need::kOptionalLinearBias, Extent::kE},
    {kFfnPostNorm, "post_ffw_norm.weight", "norm after FFN", Need::kPostNorms, Extent::kE},
};

constexpr PlaceTraits kLast[] = {
    {kOutputNorm, "output_norm.weight", "output norm", Need::kAlways, Extent::kE},
    {kOutputNormBias, "output_norm.bias", "output norm bias", Need::kNormBias, Extent::kE},
    {kOutput, "output.weight", "output head", Need::kUnlessTied, Extent::kE, Extent::kV},
};

int64_t Size(const ModelConfig& config, Extent extent) {
  const int64_t hd = int64_t{config.num_heads} * config.head_size;
  const int64_t gd = int64_t{config.num_kv_heads} * config.head_size;
  switch (extent) {
    case Extent::kNone:
      return 0;
    case Extent::kOne:
      return 1;
    case Extent::kE:
      return config.width;
    case Extent::kHD:
      return hd;
    case Extent::kHDAndGD:
      return hd + gd;
    case Extent::kQkv:
      return hd + 2 * gd;
    case Extent::kGD:
      return gd;
    case Extent::kD:
      return config.head_size;
    case Extent::kF:
      return config.ffn_width;
    case Extent::k2F:
      return 2 * int64_t{config.ffn_width};
    case Extent::kV:
      return config.vocab_size;
    case Extent::kHalfRotary:
      return config.ropes.empty() ? 0 : config.ropes.front().rotary_size / 2;
  }
  return 0;
}

bool HasPlace(const ModelConfig& config, Need need) {
  switch (need) {
    case Need::kAlways:
    case Need::kOptional:
    case Need::kOptionalLinearBias:
      return true;
    case Need::kUnlessTied:
      return !config.tied_head;
    case Need::kLongFactors:
      return config.has_long_factors;
    case Need::kNormBias:
      return config.norm_kind == kernels::NormKind::kLayer;
    case Need::kPostNorms:
      return config.has_post_norms;
    case Need::kHeadNorm:
      return config.has_head_norm;
    case Need::kSplitQkv:
      return !config.has_fused_qkv;
    case Need::kFusedQkv:
      return config.has_fused_qkv;
    case Need::kQkvBias:
      return config.has_qkv_bias;
    case Need::kLinearBias:
      return config.has_linear_biases;
    case Need::kGate:
      return config.has_ffn_gate && !config.has_fused_gate_up;
    case Need::kUp:
      return !config.has_fused_gate_up;
    case Need::kFusedGateUp:
      return config.has_fused_gate_up;
  }
  return true;
}

bool IsRequired(const ModelConfig& config, Need need) {
  return need != Need::kOptional && (need != Need::kOptionalLinearBias || config.has_linear_biases);
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
  place.required = IsRequired(config, traits.need);
  place.is_vector = traits.rows == Extent::kOne;
  place.cols = Size(config, traits.cols);
  place.rows = Size(config, traits.rows);
  place.first_row = Size(config, traits.first_row);
  place.file_rows = traits.file_rows == Extent::kNone ? place.rows : Size(config, traits.file_rows);
}

bool SameShape(const FileTensor& tensor, const TensorPlace& place) {
  // Trailing dimensions of 1 say nothing: [576] and [576, 1] are the same rows.
  return tensor.cols() == static_cast<uint64_t>(place.cols) &&
         tensor.rows() == static_cast<uint64_t>(place.file_rows) &&
         (tensor.dims.size() < 2 || tensor.dims[1] == tensor.rows());
}

std::string ExpectedShape(const TensorPlace& place) {
  const auto cols = static_cast<uint64_t>(place.cols);
  return place.is_vector ? DimsString({cols})
                         : DimsString({cols, static_cast<uint64_t>(place.file_rows)});
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
