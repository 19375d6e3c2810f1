#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

#include "engine/model/model_config.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {

// The places that the forward pass has for tensors.
enum class TensorPart : uint8_t {
  kTokenEmbedding,
  kRopeFactors,
  kRopeFactorsLong,
  kRopeFactorsShort,
  kAttentionNorm,
  kAttentionNormBias,
  kQuery,
  kKey,
  kValue,
  kQueryBias,
  kKeyBias,
  kValueBias,
  kQueryNorm,
  kKeyNorm,
  kAttentionOutput,
  kAttentionOutputBias,
  kAttentionPostNorm,
  kFfnNorm,
  kFfnNormBias,
  kGate,
  kUp,
  kUpBias,
  kDown,
  kDownBias,
  kFfnPostNorm,
  kOutputNorm,
  kOutputNormBias,
  kOutput,
};

inline constexpr size_t kNumTensorParts = static_cast<size_t>(TensorPart::kOutput) + 1;

// Tensors that ReadRopes reads, and the weights do without.
constexpr bool IsRopeFactors(TensorPart part) {
  return part == TensorPart::kRopeFactors || part == TensorPart::kRopeFactorsLong ||
         part == TensorPart::kRopeFactorsShort;
}

// A place for a tensor: its name in the file, what it must look like. Several places may share one
// tensor of the file, each with rows of its own: Q, K and V of attn_qkv, gate and up of ffn_up.
struct TensorPlace {
  TensorPart part = TensorPart::kTokenEmbedding;
  int layer = -1;  // -1 outside the layers
  std::string name;
  std::string role;  // "attention query, layer 0"
  bool required = true;
  bool is_vector = false;  // a norm, a bias, factors: used in f32
  int64_t cols = 0;        // row length
  int64_t rows = 1;
  int64_t first_row = 0;  // of the file's tensor
  int64_t file_rows = 1;  // of the file's tensor
};

// Every place of a model with these facts; those of one tensor in the order of its rows. Only
// num_layers, the sizes and the has_ and tied_ flags of `config` count.
std::vector<TensorPlace> TensorPlaces(const ModelConfig& config);

// Compares every place with the file: INVALID_ARGUMENT "FILE: tensor 'NAME' (ROLE): expected [..],
// got [..] TYPE" for one that is missing or misshapen, UNIMPLEMENTED for a vector of a type that is
// none of F32, F16, BF16.
absl::Status CheckTensors(const ModelFile& file, const ModelConfig& config);

// Errors for tensors that have no place but would change what the model computes: layers beyond
// block_count, unknown parts of layers, other heads or embeddings. Any other tensor may be ignored.
absl::Status CheckNoStrangers(const ModelFile& file, const ModelConfig& config);

}  // namespace sluice::engine
