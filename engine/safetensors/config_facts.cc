#include "engine/safetensors/config_facts.h"

#include <array>
#include <cmath>
#include <numbers>
#include <optional>
#include <string_view>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/safetensors/config_reader.h"

namespace sluice::engine {
namespace {

constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxWidth = 1 << 20;
constexpr float kDefaultRopeBase = 10000.0f;  // transformers', where a file does not say

enum class Need : uint8_t { kAlways, kAttentionBias, kHeadNorm };

// A model class of transformers.
struct Family {
  std::string_view class_name;
  std::string_view model_type;
  std::string_view architecture;  // GGUF's
  bool always_has_qkv_bias;
  bool has_head_norm;
  bool needs_data_layout;  // GGUF keeps rows of Q and K in another order than Hugging Face
};
constexpr std::array<Family, 4> kFamilies = {{
    {"LlamaForCausalLM", "llama", "llama", false, false, true},
    {"MistralForCausalLM", "mistral", "llama", false, false, true},
    {"Qwen2ForCausalLM", "qwen2", "qwen2", true, false, false},
    {"Qwen3ForCausalLM", "qwen3", "qwen3", false, true, false},
}};

struct NamePair {
  std::string_view stored;
  std::string_view name;
  Need need = Need::kAlways;
};
constexpr std::array<NamePair, 14> kOfLayer = {{
    {"input_layernorm.weight", "attn_norm.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.k_proj.weight", "attn_k.weight"},
    {"self_attn.v_proj.weight", "attn_v.weight"},
    {"self_attn.q_proj.bias", "attn_q.bias", Need::kAttentionBias},
    {"self_attn.k_proj.bias", "attn_k.bias", Need::kAttentionBias},
    {"self_attn.v_proj.bias", "attn_v.bias", Need::kAttentionBias},
    {"self_attn.q_norm.weight", "attn_q_norm.weight", Need::kHeadNorm},
    {"self_attn.k_norm.weight", "attn_k_norm.weight", Need::kHeadNorm},
    {"self_attn.o_proj.weight", "attn_output.weight"},
    {"post_attention_layernorm.weight", "ffn_norm.weight"},
    {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},
    {"mlp.down_proj.weight", "ffn_down.weight"},
}};

// Reads one config.json into a ConfigFacts; used once.
class FactMaker {
 public:
  FactMaker(const Family& family, ConfigReader& config, ConfigFacts& facts)
      : family_(family), config_(config), facts_(facts) {}

  absl::Status Make() {
    RETURN_IF_ERROR(config_.OnlyTexts("model_type", {family_.model_type}));
    SetText("general.architecture", family_.architecture, "architectures");
    RETURN_IF_ERROR(MakeSizes());
    RETURN_IF_ERROR(MakeRope());
    RETURN_IF_ERROR(MakeWindow());
    RETURN_IF_ERROR(MakeTargets());
    RETURN_IF_ERROR(config_.OnlyTexts("hidden_act", {"silu", "swish"}));
    for (const char* key : {"mlp_bias", "rope_interleaved", "add_cross_attention", "is_decoder",
                            "is_encoder_decoder", "use_bidirectional_attention"}) {
      RETURN_IF_ERROR(config_.OnlyBool(key, false));
    }
    RETURN_IF_ERROR(config_.OnlyBool("is_causal", true));
    // How the model was trained or written down, and how text is generated with it: the tokenizer's
    // files and the request decide the latter.
    config_.Ignore({"architectures",
                    "_name_or_path",
                    "_attn_implementation_autoset",
                    "torch_dtype",
                    "dtype",
                    "transformers_version",
                    "transformers.js_config",
                    "use_cache",
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
    return config_.CheckAllAsked();
  }

 private:
  void Add(std::string key, MetadataValue value, std::string_view from) {
    facts_.entries.push_back(
        {std::move(key), std::move(value), 0, "config.json key " + Quoted(from)});
  }
  void SetText(std::string_view key, std::string_view text, std::string_view from) {
    Add(std::string(key), std::string(text), from);
  }
  std::string Key(std::string_view name) const {
    return std::string(family_.architecture) + "." + std::string(name);
  }
  void SetCount(std::string_view name, int64_t count, std::string_view from) {
    Add(Key(name), static_cast<uint32_t>(count), from);
  }
  void SetNumber(std::string_view name, double number, std::string_view from) {
    Add(Key(name), static_cast<float>(number), from);
  }

  absl::Status MakeSizes() {
    struct Size {
      std::string_view key;
      std::string_view name;
      int64_t most;
    };
    for (const Size& size : {Size{"max_position_embeddings", "context_length", INT32_MAX},
                             {"hidden_size", "embedding_length", kMaxWidth},
                             {"num_hidden_layers", "block_count", kMaxLayers},
                             {"intermediate_size", "feed_forward_length", INT32_MAX},
                             {"num_attention_heads", "attention.head_count", INT32_MAX}}) {
      ASSIGN_OR_RETURN(const int64_t count, config_.Count(size.key, 1, size.most));
      SetCount(size.name, count, size.key);
      if (size.key == "hidden_size") head_size_ = count;
      if (size.key == "num_hidden_layers") num_layers_ = count;
      if (size.key != "num_attention_heads") continue;
      if (head_size_ % count == 0) head_size_ /= count;  // else head_dim has to say
    }
    ASSIGN_OR_RETURN(const std::optional<int64_t> kv_heads,
                     config_.OptionalCount("num_key_value_heads", 1));
    if (kv_heads.has_value()) {
      SetCount("attention.head_count_kv", *kv_heads, "num_key_value_heads");
    }
    ASSIGN_OR_RETURN(const std::optional<int64_t> head_size,
                     config_.OptionalCount("head_dim", 1, kMaxWidth));
    if (head_size.has_value()) {
      head_size_ = *head_size;
      SetCount("attention.key_length", *head_size, "head_dim");
      SetCount("attention.value_length", *head_size, "head_dim");
    }
    ASSIGN_OR_RETURN(facts_.vocab_size, config_.Count("vocab_size", 2));
    SetCount("vocab_size", facts_.vocab_size, "vocab_size");
    ASSIGN_OR_RETURN(const double epsilon, config_.Number("rms_norm_eps"));
    SetNumber("attention.layer_norm_rms_epsilon", epsilon, "rms_norm_eps");
    if (family_.needs_data_layout) {
      SetText(Key("tensor_data_layout"), "Hugging Face", "architectures");
    }
    return absl::OkStatus();
  }

  // Version 4 of transformers writes rope_theta and rope_scaling, version 5 rope_parameters.
  absl::Status MakeRope() {
    RETURN_IF_ERROR(config_.OnlyNumber("partial_rotary_factor", 1));
    SetCount("rope.dimension_count", head_size_, "head_dim");
    std::string_view key = "rope_parameters";
    std::optional<JsonValue> object = config_.Take(key);
    const std::optional<JsonValue> scaling = config_.Take("rope_scaling");
    if (object.has_value() && scaling.has_value()) {
      return config_.Bad("rope_scaling", "expected either this or 'rope_parameters', got both");
    }
    if (scaling.has_value()) {
      key = "rope_scaling";
      object = scaling;
    }
    ASSIGN_OR_RETURN(std::optional<double> base, config_.OptionalNumber("rope_theta"));
    if (!object.has_value()) return SetRopeBase(base, "rope_theta");
    const std::string subject = config_.subject() + ": key " + Quoted(key);
    if (!object->is_object()) {
      return config_.Bad(key, "expected an object, got " + std::string(KindName(object->kind())));
    }
    ConfigReader rope(subject, *object);
    ASSIGN_OR_RETURN(const std::optional<double> own_base, rope.OptionalNumber("rope_theta"));
    if (own_base.has_value() && base.has_value() && *own_base != *base) {
      return rope.Bad("rope_theta", "expected the other 'rope_theta', got another number");
    }
    if (own_base.has_value()) base = own_base;
    RETURN_IF_ERROR(SetRopeBase(base, "rope_theta"));
    RETURN_IF_ERROR(rope.OnlyNumber("partial_rotary_factor", 1));
    RETURN_IF_ERROR(MakeScaling(rope));
    return rope.CheckAllAsked();
  }

  absl::Status SetRopeBase(std::optional<double> base, std::string_view from) {
    rope_base_ = static_cast<float>(base.value_or(kDefaultRopeBase));
    if (!(rope_base_ > 0.0f)) return config_.Bad(from, "expected a number above 0");
    SetNumber("rope.freq_base", rope_base_, from);
    return absl::OkStatus();
  }

  absl::Status MakeScaling(ConfigReader& rope) {
    ASSIGN_OR_RETURN(std::optional<std::string_view> type, rope.OptionalText("rope_type"));
    ASSIGN_OR_RETURN(const std::optional<std::string_view> old_type, rope.OptionalText("type"));
    if (type.has_value() && old_type.has_value() && *type != *old_type) {
      return rope.Bad("type",
                      "expected 'rope_type', " + Quoted(*type) + ", got " + Quoted(*old_type));
    }
    if (!type.has_value()) type = old_type;
    const std::string_view name = type.value_or("default");
    if (name == "default") return absl::OkStatus();
    if (name != "linear" && name != "llama3" && name != "yarn") {
      return rope.Unsupported(
          "rope_type",
          "only 'default', 'linear', 'llama3' and 'yarn' are supported, got " + Quoted(name));
    }
    ASSIGN_OR_RETURN(const double factor, rope.Number("factor"));
    if (!(factor > 0)) return rope.Bad("factor", "expected a number above 0");
    if (name == "llama3") return MakeLlama3Factors(rope, factor);
    SetText(Key("rope.scaling.type"), name, "rope_type");
    SetNumber("rope.scaling.factor", factor, "factor");
    return name == "yarn" ? MakeYarn(rope) : absl::OkStatus();
  }

  absl::Status MakeYarn(ConfigReader& rope) {
    ASSIGN_OR_RETURN(const int64_t original, rope.Count("original_max_position_embeddings", 1));
    SetCount("rope.scaling.original_context_length", original, "original_max_position_embeddings");
    struct Option {
      std::string_view key;
      std::string_view name;
    };
    for (const Option& option : {Option{"beta_fast", "rope.scaling.yarn_beta_fast"},
                                 {"beta_slow", "rope.scaling.yarn_beta_slow"},
                                 {"attention_factor", "rope.scaling.yarn_attn_factor"}}) {
      ASSIGN_OR_RETURN(const std::optional<double> number, rope.OptionalNumber(option.key));
      if (number.has_value()) SetNumber(option.name, *number, option.key);
    }
    return rope.OnlyBool("truncate", true);
  }

  // How Llama 3.1 stretches its slow frequencies: divisors of all of them, as converters store
  // them.
  absl::Status MakeLlama3Factors(ConfigReader& rope, double factor) {
    ASSIGN_OR_RETURN(const double low, rope.Number("low_freq_factor"));
    ASSIGN_OR_RETURN(const double high, rope.Number("high_freq_factor"));
    ASSIGN_OR_RETURN(const int64_t original, rope.Count("original_max_position_embeddings", 1));
    if (!(low > 0 && high > low)) {
      return rope.Bad("high_freq_factor",
                      "expected a number above 'low_freq_factor', and that "
                      "above 0");
    }
    const auto context = static_cast<double>(original);
    for (int64_t i = 0; i < head_size_ / 2; ++i) {
      const double exponent = static_cast<double>(2 * i) / static_cast<double>(head_size_);
      const double wave = 2 * std::numbers::pi * std::pow(double{rope_base_}, exponent);
      double divisor = 1;
      if (wave > context / low) {
        divisor = factor;
      } else if (wave >= context / high) {
        const double smooth = (context / wave - low) / (high - low);
        divisor = 1 / ((1 - smooth) / factor + smooth);
      }
      facts_.rope_factors.push_back(static_cast<float>(divisor));
    }
    return absl::OkStatus();
  }

  // Windows: Mistral's is a number, Qwen's counts only where use_sliding_window says so.
  absl::Status MakeWindow() {
    ASSIGN_OR_RETURN(const std::optional<int64_t> window,
                     config_.OptionalCount("sliding_window", 0));
    RETURN_IF_ERROR(config_.OnlyBool("use_sliding_window", false));
    if (window.value_or(0) > 0 && family_.model_type == "mistral") {
      SetCount("attention.sliding_window", *window, "sliding_window");
    }
    const std::optional<JsonValue> types = config_.Take("layer_types");
    if (!types.has_value()) return absl::OkStatus();
    if (!types->is_array() || static_cast<int64_t>(types->size()) != num_layers_) {
      return config_.Bad("layer_types", "expected an array of a type for each of the " +
                                            std::to_string(num_layers_) + " layers");
    }
    for (const JsonValue type : *types) {
      if (type.AsString() == "full_attention") continue;
      return config_.Unsupported("layer_types",
                                 "only 'full_attention' is supported, got " + type.Dump(80));
    }
    return absl::OkStatus();
  }

  absl::Status MakeTargets() {
    ASSIGN_OR_RETURN(const std::optional<bool> attention_bias,
                     config_.OptionalBool("attention_bias"));
    if (family_.always_has_qkv_bias && attention_bias.has_value()) {
      return config_.Unsupported("attention_bias", "this model class has no such choice");
    }
    // These classes tie head and embedding only where the file says so.
    ASSIGN_OR_RETURN(const std::optional<bool> tied, config_.OptionalBool("tie_word_embeddings"));
    facts_.targets["model.embed_tokens.weight"] = {"token_embd.weight"};
    facts_.targets["model.norm.weight"] = {"output_norm.weight"};
    // One that is stored all the same is used as it is, which transformers 5 does as well.
    facts_.targets["lm_head.weight"] = {"output.weight", !tied.value_or(false)};
    const bool has_bias = family_.always_has_qkv_bias || attention_bias.value_or(false);
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      const std::string stored = "model.layers." + std::to_string(layer) + ".";
      const std::string name = "blk." + std::to_string(layer) + ".";
      for (const NamePair& pair : kOfLayer) {
        if (pair.need == Need::kAttentionBias && !has_bias) continue;
        if (pair.need == Need::kHeadNorm && !family_.has_head_norm) continue;
        facts_.targets[stored + std::string(pair.stored)] = {name + std::string(pair.name)};
      }
      if (attention_bias.value_or(false)) {
        facts_.targets[stored + "self_attn.o_proj.bias"] = {name + "attn_output.bias"};
      }
    }
    return absl::OkStatus();
  }

  const Family& family_;
  ConfigReader& config_;
  ConfigFacts& facts_;
  int64_t num_layers_ = 0;
  int64_t head_size_ = 0;
  float rope_base_ = 0.0f;
};

}  // namespace

absl::StatusOr<ConfigFacts> ConfigFacts::Read(const std::string& path, const JsonDocument& config) {
  ConfigReader reader(path, config.root());
  const std::optional<JsonValue> classes = reader.Take("architectures");
  std::string known;
  for (const Family& family : kFamilies) {
    known += (known.empty() ? "" : ", ") + std::string(family.class_name);
  }
  if (!classes.has_value() || !classes->is_array() || classes->size() != 1 ||
      !(*classes->begin()).is_string()) {
    return reader.Bad("architectures", "expected an array of one of " + known + ", got " +
                                           (classes.has_value() ? classes->Dump(80) : "none"));
  }
  ConfigFacts facts;
  facts.class_name = *(*classes->begin()).AsString();
  for (const Family& family : kFamilies) {
    if (family.class_name != facts.class_name) continue;
    RETURN_IF_ERROR(FactMaker(family, reader, facts).Make());
    return facts;
  }
  return reader.Unsupported("architectures",
                            "only " + known + " are supported, got " + Quoted(facts.class_name));
}

}  // namespace sluice::engine
