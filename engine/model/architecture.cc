#include "engine/model/architecture.h"

#include <array>
#include <optional>
#include <string>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

using kernels::GateActivation;
using kernels::NormKind;
using kernels::RopeStyle;

constexpr std::array kArchitectures = {
    // Llama 1 to 3, Mistral, SmolLM and others that compute the same. Files older than the key mean
    // the rope base of the first Llama models.
    Architecture{.name = "llama",
                 .data_layout = "Meta AI original pth",
                 .rope_style = RopeStyle::kInterleaved,
                 .needs_rotary_size = true,
                 .default_rope_base = 10000.0f,
                 .window_period = 1},
    Architecture{.name = "mistral3",
                 .data_layout = "Meta AI original pth",
                 .rope_style = RopeStyle::kInterleaved,
                 .needs_rotary_size = true,
                 .may_have_temperature = true},
    Architecture{.name = "qwen2", .always_has_qkv_bias = true},
    Architecture{.name = "qwen3", .has_head_norm = true},
    // The reference knows the rope bases of Gemma 1 and 2, those of the layers with a window of
    // Gemma 3, which layers those are and the models whose attention is scaled by the width, 27B.
    Architecture{.name = "gemma",
                 .default_rope_base = 10000.0f,
                 .never_says_rope_base = true,
                 .ffn_activation = GateActivation::kGeluTanh,
                 .scales_embedding = true},
    Architecture{.name = "gemma2",
                 .default_rope_base = 10000.0f,
                 .never_says_rope_base = true,
                 .window_period = 2,
                 .needs_window = true,
                 .has_post_norms = true,
                 .ffn_activation = GateActivation::kGeluTanh,
                 .scales_embedding = true,
                 .layers_scaled_by_width = 46,
                 .needs_softcaps = true},
    // Files that hold a vision model as well may leave out what all models of Gemma 3 share.
    Architecture{.name = "gemma3",
                 .default_rope_base = 1000000.0f,
                 .window_rope_base = 10000.0f,
                 .window_period = 6,
                 .default_norm_epsilon = 1e-6f,
                 .has_head_norm = true,
                 .has_post_norms = true,
                 .ffn_activation = GateActivation::kGeluTanh,
                 .scales_embedding = true,
                 .layers_scaled_by_width = 62,
                 .may_have_logit_softcap = true},
    // Its publisher's own files say neither the rope base nor the window: 10000 and, for the models
    // of 4096 positions, 2047 (their configuration).
    Architecture{.name = "phi3",
                 .needs_rotary_size = true,
                 .default_rope_base = 10000.0f,
                 .may_have_long_factors = true,
                 .window_period = 1,
                 .knows_window = true,
                 .may_fuse_gate_up = true},
    // Its files do not say that it was trained with a window (arXiv 2402.19173).
    Architecture{.name = "starcoder2",
                 .default_rope_base = 10000.0f,
                 .window_period = 1,
                 .default_window = 4096,
                 .norm_kind = NormKind::kLayer,
                 .ffn_activation = GateActivation::kGeluTanh,
                 .has_ffn_gate = false,
                 .always_has_qkv_bias = true,
                 .has_linear_biases = true},
    Architecture{.name = "granite",
                 .data_layout = "Meta AI original pth",
                 .rope_style = RopeStyle::kInterleaved,
                 .needs_rotary_size = true,
                 .default_rope_base = 10000.0f,
                 .finetuned_says_rotated = true,
                 .needs_scales = true},
    // The period is no_rope_layer_interval of the models' configuration.
    Architecture{.name = "smollm3", .rope_style = RopeStyle::kInterleaved, .unrotated_period = 4},
    Architecture{.name = "stablelm",
                 .needs_rotary_size = true,
                 .default_rope_base = 10000.0f,
                 .norm_kind = NormKind::kLayer},
    Architecture{.name = "exaone", .default_rope_base = 10000.0f},
    Architecture{
        .name = "internlm2", .rope_style = RopeStyle::kInterleaved, .default_rope_base = 10000.0f},
};

std::string Names() {
  std::string names;
  for (const Architecture& architecture : kArchitectures) {
    names += (names.empty() ? "'" : ", '") + std::string(architecture.name) + "'";
  }
  return names;
}

}  // namespace

absl::StatusOr<Architecture> Architecture::Of(const ModelFile& file) {
  const std::string subject = file.path() + ": key 'general.architecture': expected one of ";
  ASSIGN_OR_RETURN(const std::optional<std::string_view> name,
                   file.GetString("general.architecture"));
  if (!name.has_value()) {
    return InvalidArgument(subject + Names() + ", got none: it is missing from the file");
  }
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == *name) return architecture;
  }
  return Unimplemented(subject + Names() + ", got " + Quoted(*name) +
                       file.At("general.architecture"));
}

void Architecture::ReadTensorTraits(const ModelFile& file, ModelConfig& config) const {
  const auto has = [&file](std::string_view tensor) { return file.FindTensor(tensor) != nullptr; };
  config.norm_kind = norm_kind;
  config.ffn_activation = ffn_activation;
  config.has_ffn_gate = has_ffn_gate;
  config.has_linear_biases = has_linear_biases;
  config.has_head_norm = has_head_norm;
  config.has_post_norms = has_post_norms;
  config.has_fused_qkv = has("blk.0.attn_qkv.weight");
  config.has_fused_gate_up = may_fuse_gate_up && !has("blk.0.ffn_gate.weight");
  config.has_long_factors = may_have_long_factors &&
                            (has("rope_factors_long.weight") || has("rope_factors_short.weight"));
  config.has_qkv_bias = always_has_qkv_bias || has("blk.0.attn_q.bias");
  config.tied_head = !has("output.weight");
}

}  // namespace sluice::engine
