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
  bool needs_rotary_size = false;     // rope.dimension_count must be there (ggml/docs/gguf.md)
  float default_rope_base = 0.0f;     // where rope.freq_base is absent; 0: it must be there
  bool never_says_rope_base = false;  // the default is what its files mean, and worth no note
  float window_rope_base = 0.0f;  // of layers with a window, where rope.freq_base_swa is absent;
                                  // 0: that of all layers
  bool may_have_long_factors = false;   // rope_factors_long.weight and rope_factors_short.weight
  int32_t unrotated_period = 0;         // each n-th layer rotates nothing; 0: all rotate
  bool finetuned_says_rotated = false;  // rope.scaling.finetuned: false says that no layer rotates

  int32_t window_period = 0;   // all layers but each n-th may have a window; 1: all; 0: none
  bool needs_window = false;   // attention.sliding_window must be there, if only as 0
  int32_t default_window = 0;  // where it is absent
  bool knows_window = false;   // where it is absent, the sizes of the model tell (phi3)

  kernels::NormKind norm_kind = kernels::NormKind::kRms;
  float default_norm_epsilon = 0.0f;  // where its key is absent; 0: it must be there
  bool has_head_norm = false;
  bool has_post_norms = false;

  kernels::GateActivation ffn_activation = kernels::GateActivation::kSilu;
  bool has_ffn_gate = true;
  bool may_fuse_gate_up = false;  // no ffn_gate.weight: ffn_up.weight holds both
  bool always_has_qkv_bias = false;
  bool has_linear_biases = false;

  bool scales_embedding = false;  // by the square root of the width
  int32_t layers_scaled_by_width =
      0;                              // models of so many layers scale attention by 1 / sqrt(E / H)
  bool needs_scales = false;          // of attention, embedding, residual and logits
  bool may_have_temperature = false;  // attention.temperature_scale
  bool needs_softcaps = false;        // of attention and logits
  bool may_have_logit_softcap = false;

  // INVALID_ARGUMENT when general.architecture is missing or no string, UNIMPLEMENTED when unknown.
  static absl::StatusOr<Architecture> Of(const ModelFile& file);

  // Sets the flags of `config` that follow from the architecture and from what tensors there are.
  void ReadTensorTraits(const ModelFile& file, ModelConfig& config) const;
};

}  // namespace sluice::engine
