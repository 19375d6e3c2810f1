#include "engine/safetensors/model_family.h"

#include <string>

namespace sluice::engine {
namespace {

using Biases = ModelFamily::Biases;
using Ffn = ModelFamily::Ffn;
using Window = ModelFamily::Window;

// Gemma's official files say "gelu" and mean the approximation.
constexpr std::array<std::string_view, 2> kGeluTanh = {"gelu_pytorch_tanh"};
constexpr std::array<std::string_view, 2> kGeluOfGemma = {"gelu_pytorch_tanh", "gelu"};

constexpr std::array kFamilies = {
    ModelFamily{.class_name = "LlamaForCausalLM",
                .model_type = "llama",
                .architecture = "llama",
                .needs_data_layout = true},
    ModelFamily{.class_name = "MistralForCausalLM",
                .model_type = "mistral",
                .architecture = "llama",
                .needs_data_layout = true,
                .window = Window::kOfAllLayers},
    ModelFamily{.class_name = "Qwen2ForCausalLM",
                .model_type = "qwen2",
                .architecture = "qwen2",
                .biases = Biases::kOfQkv},
    ModelFamily{.class_name = "Qwen3ForCausalLM",
                .model_type = "qwen3",
                .architecture = "qwen3",
                .has_head_norm = true},
    ModelFamily{.class_name = "GemmaForCausalLM",
                .model_type = "gemma",
                .architecture = "gemma",
                .activations = kGeluOfGemma,
                .norm_offset = 1.0f,
                .needs_head_size = true,
                .needs_kv_heads = true,
                .ties_head = true},
    ModelFamily{.class_name = "Gemma2ForCausalLM",
                .model_type = "gemma2",
                .architecture = "gemma2",
                .activations = kGeluTanh,
                .has_post_norms = true,
                .norm_offset = 1.0f,
                .needs_head_size = true,
                .needs_kv_heads = true,
                .ties_head = true,
                .has_query_scalar = true,
                .has_softcaps = true,
                .window = Window::kByLayer,
                .window_period = 2},
    ModelFamily{.class_name = "Gemma3ForCausalLM",
                .model_type = "gemma3_text",
                .architecture = "gemma3",
                .activations = kGeluTanh,
                .has_head_norm = true,
                .has_post_norms = true,
                .norm_offset = 1.0f,
                .needs_head_size = true,
                .needs_kv_heads = true,
                .ties_head = true,
                .has_query_scalar = true,
                .rope_base = 1000000.0f,
                .window_rope_base = 10000.0f,
                .window = Window::kByLayer,
                .window_period = 6},
    ModelFamily{.class_name = "Phi3ForCausalLM",
                .model_type = "phi3",
                .architecture = "phi3",
                .biases = Biases::kNone,
                .ffn = Ffn::kFusedGate,
                .rotary_part = 1.0f,
                .has_long_factors = true,
                .window = Window::kOfAllLayers},
    ModelFamily{.class_name = "GraniteForCausalLM",
                .model_type = "granite",
                .architecture = "granite",
                .needs_data_layout = true,
                .has_scales = true},
    ModelFamily{.class_name = "Starcoder2ForCausalLM",
                .model_type = "starcoder2",
                .architecture = "starcoder2",
                .activations = kGeluTanh,
                .biases = Biases::kAll,
                .ffn = Ffn::kNoGate,
                .has_layer_norm = true,
                .epsilon_key = "norm_epsilon",
                .needs_kv_heads = true,
                .ties_head = true,
                .window = Window::kOfAllLayers},
    ModelFamily{.class_name = "SmolLM3ForCausalLM",
                .model_type = "smollm3",
                .architecture = "smollm3",
                .needs_data_layout = true,
                .needs_kv_heads = true,
                .ties_head = true,
                .unrotated_period = 4,
                .rope_base = 2000000.0f},
    ModelFamily{.class_name = "StableLmForCausalLM",
                .model_type = "stablelm",
                .architecture = "stablelm",
                .biases = Biases::kAsUseQkvBiasSays,
                .has_layer_norm = true,
                .epsilon_key = "layer_norm_eps",
                .needs_kv_heads = true,
                .rotary_part = 0.25f},
};

enum class Need : uint8_t {
  kAlways,
  kQkvBias,
  kOutputBias,
  kHeadNorm,
  kNormBias,
  kPreNorms,  // the norm after attention is the one before the FFN
  kPostNorms,
  kSplit,
  kFused,
  kGated,
  kGatedOrFused,
  kNoGate,
};

struct NamePair {
  std::string_view stored;
  std::string_view name;
  Need need = Need::kAlways;
};
constexpr NamePair kOfModel[] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"model.norm.bias", "output_norm.bias", Need::kNormBias},
};
constexpr NamePair kOfLayer[] = {
    {"input_layernorm.weight", "attn_norm.weight"},
    {"input_layernorm.bias", "attn_norm.bias", Need::kNormBias},
    {"self_attn.q_proj.weight", "attn_q.weight", Need::kSplit},
    {"self_attn.k_proj.weight", "attn_k.weight", Need::kSplit},
    {"self_attn.v_proj.weight", "attn_v.weight", Need::kSplit},
    {"self_attn.qkv_proj.weight", "attn_qkv.weight", Need::kFused},
    {"self_attn.q_proj.bias", "attn_q.bias", Need::kQkvBias},
    {"self_attn.k_proj.bias", "attn_k.bias", Need::kQkvBias},
    {"self_attn.v_proj.bias", "attn_v.bias", Need::kQkvBias},
    {"self_attn.q_norm.weight", "attn_q_norm.weight", Need::kHeadNorm},
    {"self_attn.k_norm.weight", "attn_k_norm.weight", Need::kHeadNorm},
    {"self_attn.o_proj.weight", "attn_output.weight"},
    {"self_attn.o_proj.bias", "attn_output.bias", Need::kOutputBias},
    {"post_attention_layernorm.weight", "ffn_norm.weight", Need::kPreNorms},
    {"post_attention_layernorm.bias", "ffn_norm.bias", Need::kNormBias},
    {"post_attention_layernorm.weight", "post_attention_norm.weight", Need::kPostNorms},
    {"pre_feedforward_layernorm.weight", "ffn_norm.weight", Need::kPostNorms},
    {"post_feedforward_layernorm.weight", "post_ffw_norm.weight", Need::kPostNorms},
    {"mlp.gate_proj.weight", "ffn_gate.weight", Need::kGated},
    {"mlp.up_proj.weight", "ffn_up.weight", Need::kGated},
    {"mlp.gate_up_proj.weight", "ffn_up.weight", Need::kFused},
    {"mlp.down_proj.weight", "ffn_down.weight", Need::kGatedOrFused},
    {"mlp.c_fc.weight", "ffn_up.weight", Need::kNoGate},
    {"mlp.c_fc.bias", "ffn_up.bias", Need::kNoGate},
    {"mlp.c_proj.weight", "ffn_down.weight", Need::kNoGate},
    {"mlp.c_proj.bias", "ffn_down.bias", Need::kNoGate},
};

bool Has(const ModelFamily& family, bool has_biases, Need need) {
  switch (need) {
    case Need::kAlways:
      return true;
    case Need::kQkvBias:
      return has_biases || family.biases == Biases::kOfQkv || family.biases == Biases::kAll;
    case Need::kOutputBias:
      return (has_biases && family.biases == Biases::kAsAttentionBiasSays) ||
             family.biases == Biases::kAll;
    case Need::kHeadNorm:
      return family.has_head_norm;
    case Need::kNormBias:
      return family.has_layer_norm;
    case Need::kPreNorms:
      return !family.has_post_norms;
    case Need::kPostNorms:
      return family.has_post_norms;
    case Need::kSplit:
      return family.ffn != Ffn::kFusedGate;
    case Need::kFused:
      return family.ffn == Ffn::kFusedGate;
    case Need::kGated:
      return family.ffn == Ffn::kGated;
    case Need::kGatedOrFused:
      return family.ffn != Ffn::kNoGate;
    case Need::kNoGate:
      return family.ffn == Ffn::kNoGate;
  }
  return false;
}

}  // namespace

std::span<const ModelFamily> ModelFamily::All() { return kFamilies; }

void ModelFamily::AddTargets(int64_t num_layers, bool has_biases, bool tied,
                             ConfigFacts& facts) const {
  const auto add = [&](const std::string& stored, const std::string& name, const NamePair& pair) {
    if (!Has(*this, has_biases, pair.need)) return;
    TensorTarget& target = facts.targets[stored + std::string(pair.stored)];
    target.name = name + std::string(pair.name);
    if (target.name.ends_with("norm.weight")) target.added = norm_offset;
  };
  for (const NamePair& pair : kOfModel) add("", "", pair);
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const std::string number = std::to_string(layer) + ".";
    for (const NamePair& pair : kOfLayer) add("model.layers." + number, "blk." + number, pair);
  }
  // One that is stored all the same is used as it is, which transformers 5 does as well.
  facts.targets["lm_head.weight"] = {"output.weight", !tied};
}

}  // namespace sluice::engine
