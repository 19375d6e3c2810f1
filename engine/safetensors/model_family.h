#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "engine/safetensors/config_facts.h"

namespace sluice::engine {

// A model class of transformers: what follows from its name, and what it takes a key of config.json
// to be that is absent. Value.
struct ModelFamily {
  // Whose linear layers of attention have biases.
  enum class Biases : uint8_t { kAsAttentionBiasSays, kAsUseQkvBiasSays, kOfQkv, kAll, kNone };
  enum class Ffn : uint8_t {
    kGated,
    kFusedGate,
    kNoGate
  };  // kFusedGate: Q, K, V are fused as well
  enum class Window : uint8_t { kIgnored, kOfAllLayers, kByLayer };

  std::string_view class_name;
  std::string_view model_type;
  std::string_view architecture;  // GGUF's
  // Of hidden_act and hidden_activation: those that are the architecture's.
  std::array<std::string_view, 2> activations = {"silu", "swish"};
  Biases biases = Biases::kAsAttentionBiasSays;
  Ffn ffn = Ffn::kGated;
  bool has_head_norm = false;
  bool has_post_norms = false;
  bool has_layer_norm = false;  // with biases; else RMS norms
  std::string_view epsilon_key = "rms_norm_eps";
  float norm_offset = 0.0f;        // FileTensor::added of its norms
  bool needs_data_layout = false;  // GGUF keeps rows of Q and K in another order
  bool needs_head_size = false;    // no default but a number of the class's own
  bool needs_kv_heads = false;     // likewise
  bool ties_head = false;          // where tie_word_embeddings is absent
  // Of a head, where partial_rotary_factor is absent; 0: no part but the whole.
  float rotary_part = 0.0f;
  bool has_long_factors = false;  // of rope, and no other scaling
  bool has_scales = false;        // Granite's
  bool has_query_scalar = false;  // query_pre_attn_scalar
  bool has_softcaps = false;      // of attention and logits
  int32_t unrotated_period = 0;   // the n of no_rope_layers that the architecture has
  float rope_base = 10000.0f;     // where there is no rope_theta
  float window_rope_base = 0.0f;  // and of layers with a window, where it differs
  Window window = Window::kIgnored;
  int32_t window_period = 0;  // kByLayer: all but each n-th, where config.json is silent

  static std::span<const ModelFamily> All();

  // Where each tensor of a model belongs; `has_biases`: attention_bias.
  void AddTargets(int64_t num_layers, bool has_biases, bool tied, ConfigFacts& facts) const;
};

}  // namespace sluice::engine
