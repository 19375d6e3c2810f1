#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

#include "engine/model/model_config.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {

// tensor_data_layout of models as Hugging Face keeps them (SafetensorsModel): rows of Q and K are
// in half-split order, whatever the architecture's GGUF files do.
inline constexpr std::string_view kHuggingFaceLayout = "Hugging Face";

// What a value of general.architecture says without saying it: facts about a family of models that
// converters leave out of their files. Value.
struct Architecture {
  std::string_view name;
  // The value that tensor_data_layout may have beside kHuggingFaceLayout.
  std::string_view data_layout = "reference";

  kernels::RopeStyle rope_style = kernels::RopeStyle::kHalfSplit;  // of its files' rows of Q and K
  bool needs_rotary_size = false;  // rope.dimension_count must be there (ggml/docs/gguf.md)
  float default_rope_base = 0.0f;  // where rope.freq_base is absent; 0: it must be there
  int32_t unrotated_period = 0;    // each n-th layer rotates nothing; 0: all rotate

  bool always_has_qkv_bias = false;
  bool has_head_norm = false;

  // INVALID_ARGUMENT when general.architecture is missing or no string, UNIMPLEMENTED when unknown.
  static absl::StatusOr<Architecture> Of(const ModelFile& file);

  // Sets the flags of `config` that follow from the architecture and from what tensors there are.
  void ReadTensorTraits(const ModelFile& file, ModelConfig& config) const;
};

}  // namespace sluice::engine
