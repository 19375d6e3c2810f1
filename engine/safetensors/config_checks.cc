#include "engine/safetensors/config_checks.h"

#include <optional>
#include <string>
#include <string_view>

#include "engine/base/status.h"

namespace sluice::engine {
namespace {

// no_rope_layers says of each layer whether it rotates; the architecture knows one period.
absl::Status CheckUnrotated(const ModelFamily& family, int64_t num_layers, ConfigReader& config) {
  const int64_t period = family.unrotated_period;
  if (period == 0) return absl::OkStatus();
  constexpr std::string_view kLayers = "no_rope_layers";
  constexpr std::string_view kInterval = "no_rope_layer_interval";
  const std::string only = "only each " + std::to_string(period) + "th layer may be unrotated";
  ASSIGN_OR_RETURN(const std::optional<int64_t> interval, config.OptionalCount(kInterval, 1));
  const std::optional<JsonValue> layers = config.Take(kLayers);
  if (!layers.has_value()) {
    if (interval.value_or(period) == period) return absl::OkStatus();
    return config.Unsupported(kInterval, only + ", got " + std::to_string(*interval));
  }
  if (!layers->is_array() || static_cast<int64_t>(layers->size()) < num_layers) {
    return config.Bad(kLayers, "expected an array of 0 or 1 for each of the " +
                                   std::to_string(num_layers) + " layers");
  }
  int64_t i = 0;
  for (const JsonValue layer : *layers) {
    if (++i > num_layers) break;
    if (layer.AsInteger() == (i % period == 0 ? 0 : 1)) continue;
    return config.Unsupported(kLayers, only + ", got " + layers->Dump(80));
  }
  return absl::OkStatus();
}

// What StarCoder 2 and StableLM say about layers that are computed in one way only.
absl::Status CheckFixedLayers(const ModelFamily& family, ConfigReader& config) {
  if (family.biases == ModelFamily::Biases::kAsUseQkvBiasSays) {
    RETURN_IF_ERROR(config.OnlyBool("qk_layernorm", false));
    return config.OnlyBool("use_parallel_residual", false);
  }
  if (family.biases != ModelFamily::Biases::kAll) return absl::OkStatus();
  for (const char* key : {"use_bias", "scale_attn_weights"}) {
    RETURN_IF_ERROR(config.OnlyBool(key, true));
  }
  RETURN_IF_ERROR(config.OnlyTexts("mlp_type", {"default"}));
  RETURN_IF_ERROR(config.OnlyTexts("norm_type", {"layer_norm"}));
  RETURN_IF_ERROR(config.OnlyTexts("activation_function", {"gelu", "gelu_pytorch_tanh"}));
  config.Ignore({"layer_norm_epsilon", "attention_softmax_in_fp32",
                 "scale_attention_softmax_in_fp32", "residual_dropout", "embedding_dropout"});
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckOtherTraits(const ModelFamily& family, int64_t num_layers, ConfigReader& config) {
  RETURN_IF_ERROR(CheckUnrotated(family, num_layers, config));
  RETURN_IF_ERROR(CheckFixedLayers(family, config));
  for (const char* key : {"hidden_act", "hidden_activation"}) {
    const auto& [first, second] = family.activations;
    RETURN_IF_ERROR(second.empty() ? config.OnlyTexts(key, {first})
                                   : config.OnlyTexts(key, {first, second}));
  }
  // Of the code that comes with some models of Microsoft: neutral values.
  for (const char* key : {"interpolate_factor", "full_attn_mod"}) {
    RETURN_IF_ERROR(config.OnlyNumber(key, 1));
  }
  for (const char* key : {"lm_head_bias", "mlp_bias", "rope_interleaved", "add_cross_attention",
                          "is_decoder", "is_encoder_decoder", "use_bidirectional_attention"}) {
    RETURN_IF_ERROR(config.OnlyBool(key, false));
  }
  RETURN_IF_ERROR(config.OnlyBool("is_causal", true));
  // How the model was trained or written down, and how text is generated with it: the tokenizer's
  // files and the request decide the latter.
  config.Ignore({"architectures",
                 "_name_or_path",
                 "_attn_implementation_autoset",
                 "torch_dtype",
                 "dtype",
                 "transformers_version",
                 "transformers.js_config",
                 "use_cache",
                 "cache_implementation",
                 "bos_token_id",
                 "eos_token_id",
                 "pad_token_id",
                 "unk_token_id",
                 "sep_token_id",
                 "initializer_range",
                 "attention_dropout",
                 "hidden_dropout",
                 "embd_pdrop",
                 "resid_pdrop",
                 "pretraining_tp",
                 "is_llama_config",
                 "output_attentions",
                 "output_hidden_states",
                 "return_dict",
                 "chunk_size_feed_forward",
                 "id2label",
                 "label2id",
                 "problem_type",
                 "task_specific_params",
                 "auto_map",
                 "unsloth_fixed",
                 "unsloth_version",
                 "max_window_layers",
                 "original_max_position_embeddings"});
  return config.CheckAllAsked();
}

}  // namespace sluice::engine
