#pragma once

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
  kAttentionNorm,
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
  kFfnNorm,
  kGate,
  kUp,
  kDown,
  kDownBias,
  kOutputNorm,
  kOutput,
};

// A tensor that a model has a place for: its name in the file, what it must look like.
struct TensorPlace {
  TensorPart part = TensorPart::kTokenEmbedding;
  int layer = -1;  // -1 outside the layers
  std::string name;
  std::string role;  // "attention query, layer 0"
  bool required = true;
  bool is_vector = false;  // a norm, a bias, factors: used in f32
  int64_t cols = 0;        // row length
  int64_t rows = 1;
};

// Every place of a model with these facts. Only num_layers, the sizes and the has_ and tied_ flags
// of `config` count.
std::vector<TensorPlace> TensorPlaces(const ModelConfig& config);

// Compares every place with the file: INVALID_ARGUMENT "FILE: tensor 'NAME' (ROLE): expected [..],
// got [..] TYPE" for one that is missing or misshapen, UNIMPLEMENTED for a vector of a type that is
// none of F32, F16, BF16.
absl::Status CheckTensors(const ModelFile& file, const ModelConfig& config);

// Errors for tensors that have no place but would change what the model computes: layers beyond
// block_count, unknown parts of layers, other heads or embeddings. Any other tensor may be ignored.
absl::Status CheckNoStrangers(const ModelFile& file, const ModelConfig& config);

}  // namespace sluice::engine
