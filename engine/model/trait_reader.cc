#include "engine/model/trait_reader.h"

#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kWindow = "attention.sliding_window";

absl::Status ReadNorms(const Architecture& architecture, FactReader& facts, ModelConfig& config) {
  constexpr std::string_view kLayer = "attention.layer_norm_epsilon";
  constexpr std::string_view kRms = "attention.layer_norm_rms_epsilon";
  // Converters write either key, or both, after the name of the fact in the model's configuration.
  if (architecture.norm_kind == kernels::NormKind::kLayer) {
    facts.Ignore(kRms);
    ASSIGN_OR_RETURN(config.norm_epsilon, facts.Positive(kLayer));
    return absl::OkStatus();
  }
  if (facts.Has(kRms) || !facts.Has(kLayer)) {
    facts.Ignore(kLayer);
    if (!facts.Has(kRms) && architecture.default_norm_epsilon > 0.0f) {
      config.norm_epsilon = architecture.default_norm_epsilon;
      config.notes.push_back("the file does not say '" + facts.FullKey(kRms) + "': taken as " +
                             NumberString(config.norm_epsilon));
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(config.norm_epsilon, facts.Positive(kRms));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(config.norm_epsilon, facts.Positive(kLayer));
  return absl::OkStatus();
}

absl::Status ReadScales(const Architecture& architecture, FactReader& facts, ModelConfig& config) {
  // Width of a head if the heads shared the residual stream's.
  const auto width_of_head = static_cast<float>(config.width / config.num_heads);
  const bool by_width = config.num_layers == architecture.layers_scaled_by_width;
  config.attention_scale =
      1.0f / std::sqrt(by_width ? width_of_head : static_cast<float>(config.head_size));
  if (architecture.scales_embedding) {
    config.embedding_scale = std::sqrt(static_cast<float>(config.width));
  }
  if (!architecture.needs_scales) {
    RETURN_IF_ERROR(facts.OnlyNumber("attention.scale", config.attention_scale, 1e-6));
    for (const char* name : {"logit_scale", "residual_scale", "embedding_scale"}) {
      RETURN_IF_ERROR(facts.OnlyNumber(name, 1));
    }
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(config.attention_scale, facts.Positive("attention.scale"));
  ASSIGN_OR_RETURN(config.embedding_scale, facts.Positive("embedding_scale"));
  ASSIGN_OR_RETURN(config.residual_scale, facts.Positive("residual_scale"));
  ASSIGN_OR_RETURN(const float divisor, facts.Positive("logit_scale"));
  config.logit_scale = 1.0f / divisor;
  return absl::OkStatus();
}

absl::Status ReadSoftcaps(const Architecture& architecture, FactReader& facts,
                          ModelConfig& config) {
  constexpr std::string_view kAttention = "attn_logit_softcapping";
  constexpr std::string_view kFinal = "final_logit_softcapping";
  if (architecture.needs_softcaps) {
    ASSIGN_OR_RETURN(config.attention_softcap, facts.Positive(kAttention));
    ASSIGN_OR_RETURN(config.logit_softcap, facts.Positive(kFinal));
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(facts.OnlyNumber(kAttention, 0));
  if (!architecture.may_have_logit_softcap) return facts.OnlyNumber(kFinal, 0);
  ASSIGN_OR_RETURN(const std::optional<float> softcap, facts.OptionalPositiveOrZero(kFinal));
  config.logit_softcap = softcap.value_or(0.0f);
  return absl::OkStatus();
}

// The window of a Phi 3 whose file does not say it: that of its publisher's configurations.
int32_t KnownWindow(const FactReader& facts, ModelConfig& config) {
  // With long factors, 4096 positions are what is left of 131072.
  const bool is_4k = config.context_length == 4096 && !config.has_long_factors &&
                     (config.num_layers == 32 || config.num_layers == 40);
  const int32_t window = is_4k ? 2047 : 0;
  config.notes.push_back("the file does not say '" + facts.FullKey(kWindow) + "': taken as " +
                         (is_4k ? std::to_string(window) : std::string("none")));
  return window;
}

// Positions that layers with a window see; 0: the model has no windows.
absl::StatusOr<int32_t> ReadWindow(const Architecture& architecture, FactReader& facts,
                                   ModelConfig& config) {
  ASSIGN_OR_RETURN(const std::optional<int32_t> window, facts.OptionalCount(kWindow, 0, INT32_MAX));
  if (architecture.window_period > 0) {
    if (!window.has_value() && architecture.needs_window) {
      return facts.Bad(kWindow,
                       "expected the window's positions, got none: it is missing from the "
                       "file");
    }
    if (!window.has_value() && architecture.knows_window) return KnownWindow(facts, config);
    return window.value_or(architecture.default_window);
  }
  if (window.value_or(0) != 0 && *window < config.context_length) {
    return facts.Unsupported(kWindow, "only none, or at least the context of " +
                                          std::to_string(config.context_length) +
                                          ", is supported, got " + std::to_string(*window));
  }
  return 0;
}

absl::Status ReadLayers(const Architecture& architecture, FactReader& facts, ModelConfig& config) {
  ASSIGN_OR_RETURN(const int32_t window, ReadWindow(architecture, facts, config));
  const auto num_layers = static_cast<size_t>(config.num_layers);
  std::vector<bool> has_window(num_layers, window > 0);
  if (architecture.window_period > 1) {
    ASSIGN_OR_RETURN(const std::optional<std::vector<bool>> pattern,
                     facts.OptionalPattern("attention.sliding_window_pattern", config.num_layers));
    for (size_t i = 0; i < num_layers; ++i) {
      const bool said = pattern.has_value()
                            ? (*pattern)[i]
                            : (i + 1) % static_cast<size_t>(architecture.window_period) != 0;
      has_window[i] = has_window[i] && said;
    }
  }
  // IBM's Granite files use a key of rope scaling for whether there are rotations.
  bool is_rotated = true;
  if (architecture.finetuned_says_rotated) {
    ASSIGN_OR_RETURN(const std::optional<bool> finetuned,
                     facts.OptionalBool("rope.scaling.finetuned"));
    is_rotated = finetuned.value_or(true);
  }
  const auto period = static_cast<size_t>(architecture.unrotated_period);
  config.layers.resize(num_layers);
  for (size_t i = 0; i < num_layers; ++i) {
    LayerTraits& layer = config.layers[i];
    if (has_window[i] && window < config.context_length) layer.window = window;
    if (has_window[i] && config.ropes.size() > 1) layer.rope = 1;
    if (!is_rotated || (period > 0 && (i + 1) % period == 0)) layer.rope = -1;
  }
  return absl::OkStatus();
}

// What Forward has no code for.
absl::Status RefuseOtherTraits(const Architecture& architecture, FactReader& facts,
                               const ModelConfig& config) {
  ASSIGN_OR_RETURN(const std::optional<int32_t> value_length,
                   facts.OptionalCount("attention.value_length", 1, INT32_MAX));
  if (value_length.value_or(config.head_size) != config.head_size) {
    return facts.Unsupported("attention.value_length",
                             "only the size of a key head, " + std::to_string(config.head_size) +
                                 ", is supported, got " + std::to_string(*value_length));
  }
  RETURN_IF_ERROR(facts.OnlyNumber("expert_count", 0));
  RETURN_IF_ERROR(facts.OnlyNumber("expert_used_count", 0));
  for (const char* name : {"attention.max_alibi_bias", "attention.clamp_kqv", "pooling_type"}) {
    RETURN_IF_ERROR(facts.OnlyNumber(name, 0));
  }
  RETURN_IF_ERROR(facts.OnlyBool("attention.causal", true));
  // Converters write it as true for sequential models as well (StableLM 2, Qwen1.5). Models that
  // are parallel have no ffn_norm, which CheckTensors misses.
  facts.Ignore("use_parallel_residual");
  ASSIGN_OR_RETURN(const std::optional<std::string_view> layout,
                   facts.OptionalText("tensor_data_layout"));
  if (layout.has_value() && *layout != architecture.data_layout && *layout != kHuggingFaceLayout) {
    return facts.Unsupported("tensor_data_layout", "only '" +
                                                       std::string(architecture.data_layout) +
                                                       "' is supported, got " + Quoted(*layout));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadTraits(const Architecture& architecture, FactReader& facts, ModelConfig& config) {
  RETURN_IF_ERROR(ReadNorms(architecture, facts, config));
  RETURN_IF_ERROR(ReadScales(architecture, facts, config));
  RETURN_IF_ERROR(ReadSoftcaps(architecture, facts, config));
  RETURN_IF_ERROR(ReadLayers(architecture, facts, config));
  return RefuseOtherTraits(architecture, facts, config);
}

}  // namespace sluice::engine
