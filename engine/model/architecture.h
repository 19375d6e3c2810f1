#pragma once

#include <string_view>

#include "absl/status/statusor.h"

#include "engine/model/model_config.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {

// What a value of general.architecture says without saying it. Value.
struct Architecture {
  std::string_view name;
  kernels::RopeStyle rope_style;  // the order in which its files keep rows of Q and K
  bool always_has_qkv_bias;
  bool needs_rotary_size;        // rope.dimension_count must be there (ggml/docs/gguf.md)
  float default_rope_base;       // where rope.freq_base is absent; 0: it must be there
  std::string_view data_layout;  // the one value that tensor_data_layout may have

  // INVALID_ARGUMENT when general.architecture is missing or no string, UNIMPLEMENTED when unknown.
  static absl::StatusOr<Architecture> Of(const ModelFile& file);

  // Sets has_qkv_bias and tied_head by what the file holds.
  void ReadTensorTraits(const ModelFile& file, ModelConfig& config) const;
};

}  // namespace sluice::engine
