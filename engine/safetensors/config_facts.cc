#include "engine/safetensors/config_facts.h"

#include <cmath>
#include <numbers>
#include <optional>
#include <string_view>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/safetensors/config_checks.h"
#include "engine/safetensors/config_reader.h"
#include "engine/safetensors/model_family.h"

namespace sluice::engine {
namespace {

constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxWidth = 1 << 20;

// Reads one config.json into a ConfigFacts; used once.
class FactMaker {
 public:
  FactMaker(const ModelFamily& family, ConfigReader& config, ConfigFacts& facts)
      : family_(family), config_(config), facts_(facts) {}

  absl::Status Make() {
    RETURN_IF_ERROR(config_.OnlyTexts("model_type", {family_.model_type}));
    SetText("general.architecture", family_.architecture, "architectures");
    RETURN_IF_ERROR(MakeSizes());
    RETURN_IF_ERROR(MakeRope());
    RETURN_IF_ERROR(MakeWindow());
    RETURN_IF_ERROR(MakeScales());
    RETURN_IF_ERROR(MakeTargets());
    return CheckOtherTraits(family_, num_layers_, config_);
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
    if (family_.needs_kv_heads && !kv_heads.has_value()) {
      return config_.Bad("num_key_value_heads", "expected a whole number, got none");
    }
    if (kv_heads.has_value()) {
      SetCount("attention.head_count_kv", *kv_heads, "num_key_value_heads");
    }
    ASSIGN_OR_RETURN(const std::optional<int64_t> head_size,
                     config_.OptionalCount("head_dim", 1, kMaxWidth));
    if (family_.needs_head_size && !head_size.has_value()) {
      return config_.Bad("head_dim", "expected a whole number, got none");
    }
    if (head_size.has_value()) {
      head_size_ = *head_size;
      SetCount("attention.key_length", *head_size, "head_dim");
      SetCount("attention.value_length", *head_size, "head_dim");
    }
    ASSIGN_OR_RETURN(facts_.vocab_size, config_.Count("vocab_size", 2));
    SetCount("vocab_size", facts_.vocab_size, "vocab_size");
    ASSIGN_OR_RETURN(const double epsilon, config_.Number(family_.epsilon_key));
    SetNumber(family_.has_layer_norm ? "attention.layer_norm_epsilon"
                                     : "attention.layer_norm_rms_epsilon",
              epsilon, family_.epsilon_key);
    if (family_.needs_data_layout) {
      SetText(Key("tensor_data_layout"), "Hugging Face", "architectures");
    }
    return absl::OkStatus();
  }

  // Version 4 of transformers writes rope_theta and rope_scaling, version 5 rope_parameters. Where
  // layers with a window rotate otherwise, rope_local_base_freq is theirs in version 4, and
  // rope_parameters has an object for each kind in version 5.
  absl::Status MakeRope() {
    RETURN_IF_ERROR(TakeRotaryPart(config_));
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
    ASSIGN_OR_RETURN(const std::optional<double> base, config_.OptionalNumber("rope_theta"));
    std::optional<double> window_base;
    const bool has_window_base = family_.window_rope_base > 0;
    if (has_window_base) {
      ASSIGN_OR_RETURN(window_base, config_.OptionalNumber("rope_local_base_freq"));
    }
    if (object.has_value() && !object->is_object()) {
      return config_.Bad(key, "expected an object, got " + std::string(KindName(object->kind())));
    }
    const bool is_nested = has_window_base && object.has_value() && key == "rope_parameters";
    if (!is_nested) {
      RETURN_IF_ERROR(MakeRopeOf(key, object, base));
      SetCount("rope.dimension_count", rotary_size_, "head_dim");
      return has_window_base ? SetWindowRopeBase(window_base) : absl::OkStatus();
    }
    ConfigReader kinds(config_.subject() + ": key " + Quoted(key), *object);
    const std::optional<JsonValue> full = kinds.Take("full_attention");
    const std::optional<JsonValue> window = kinds.Take("sliding_attention");
    RETURN_IF_ERROR(kinds.CheckAllAsked());
    for (const std::optional<JsonValue>& kind : {full, window}) {
      if (kind.has_value() && kind->is_object()) continue;
      return config_.Bad(key, "expected objects 'full_attention' and 'sliding_attention', got " +
                                  object->Dump(80));
    }
    RETURN_IF_ERROR(MakeRopeOf("rope_parameters.full_attention", full, base));
    SetCount("rope.dimension_count", rotary_size_, "head_dim");
    ConfigReader rope(config_.subject() + ": key 'rope_parameters.sliding_attention'", *window);
    RETURN_IF_ERROR(rope.OnlyTexts("rope_type", {"default"}));
    RETURN_IF_ERROR(rope.OnlyNumber("partial_rotary_factor", 1));
    ASSIGN_OR_RETURN(const std::optional<double> own_base, rope.OptionalNumber("rope_theta"));
    RETURN_IF_ERROR(rope.CheckAllAsked());
    return SetWindowRopeBase(own_base.has_value() ? own_base : window_base);
  }

  // How many values of a head are rotated, as the reference rounds them.
  absl::Status TakeRotaryPart(ConfigReader& from) {
    constexpr std::string_view kPart = "partial_rotary_factor";
    if (family_.rotary_part == 0.0f) {
      rotary_size_ = head_size_;
      return from.OnlyNumber(kPart, 1);
    }
    ASSIGN_OR_RETURN(const std::optional<double> said, from.OptionalNumber(kPart));
    if (said.has_value() && !(*said > 0 && *said <= 1)) {
      return from.Bad(kPart, "expected a number above 0 and at most 1");
    }
    if (said.has_value() || rotary_size_ == 0) {
      rotary_size_ = static_cast<int64_t>(static_cast<double>(head_size_) *
                                          said.value_or(double{family_.rotary_part}));
    }
    return absl::OkStatus();
  }

  absl::Status SetWindowRopeBase(std::optional<double> base) {
    const double number = base.value_or(double{family_.window_rope_base});
    if (!(number > 0)) return config_.Bad("rope_local_base_freq", "expected a number above 0");
    SetNumber("rope.freq_base_swa", number, "rope_local_base_freq");
    return absl::OkStatus();
  }

  absl::Status MakeRopeOf(std::string_view key, std::optional<JsonValue> object,
                          std::optional<double> base) {
    if (!object.has_value()) return SetRopeBase(base, "rope_theta");
    ConfigReader rope(config_.subject() + ": key " + Quoted(key), *object);
    ASSIGN_OR_RETURN(const std::optional<double> own_base, rope.OptionalNumber("rope_theta"));
    if (own_base.has_value() && base.has_value() && *own_base != *base) {
      return rope.Bad("rope_theta", "expected the other 'rope_theta', got another number");
    }
    if (own_base.has_value()) base = own_base;
    RETURN_IF_ERROR(SetRopeBase(base, "rope_theta"));
    RETURN_IF_ERROR(TakeRotaryPart(rope));
    RETURN_IF_ERROR(MakeScaling(rope));
    return rope.CheckAllAsked();
  }

  absl::Status SetRopeBase(std::optional<double> base, std::string_view from) {
    rope_base_ = static_cast<float>(base.value_or(double{family_.rope_base}));
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
    if (family_.has_long_factors) return MakeLongFactors(rope, name);
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

  // Phi 3's: two sets of divisors, and a magnitude that follows from how far the context was
  // stretched unless the file says it. The class takes the original context from outside the
  // object.
  absl::Status MakeLongFactors(ConfigReader& rope, std::string_view type) {
    if (type != "longrope" && type != "su") {
      return rope.Unsupported(
          "rope_type", "only 'default', 'longrope' and 'su' are supported, got " + Quoted(type));
    }
    constexpr std::string_view kOriginal = "original_max_position_embeddings";
    ASSIGN_OR_RETURN(const std::optional<int64_t> inside, rope.OptionalCount(kOriginal, 2));
    ASSIGN_OR_RETURN(const int64_t original, config_.Count(kOriginal, 2));
    if (inside.value_or(original) != original) {
      return rope.Bad(kOriginal, "expected the other, " + std::to_string(original) + ", got " +
                                     std::to_string(*inside));
    }
    ASSIGN_OR_RETURN(const int64_t context, config_.Count("max_position_embeddings", 1));
    const double stretch = static_cast<double>(context) / static_cast<double>(original);
    RETURN_IF_ERROR(rope.OnlyNumber("factor", stretch));
    ASSIGN_OR_RETURN(const std::optional<double> said, rope.OptionalNumber("attention_factor"));
    const double computed =
        stretch <= 1 ? 1
                     : std::sqrt(1 + std::log(stretch) / std::log(static_cast<double>(original)));
    SetText(Key("rope.scaling.type"), "longrope", "rope_type");
    SetCount("rope.scaling.original_context_length", original, kOriginal);
    SetNumber("rope.scaling.attn_factor", said.value_or(computed), "attention_factor");
    RETURN_IF_ERROR(TakeFactors(rope, "long_factor", "rope_factors_long.weight"));
    return TakeFactors(rope, "short_factor", "rope_factors_short.weight");
  }

  absl::Status TakeFactors(ConfigReader& rope, std::string_view key, std::string name) {
    const std::optional<JsonValue> array = rope.Take(key);
    const std::string expected = "expected an array of numbers, got ";
    if (!array.has_value()) return rope.Bad(key, expected + "none");
    std::vector<float> factors;
    for (const JsonValue factor : *array) {
      const std::optional<double> number = factor.AsNumber();
      if (!array->is_array() || !number.has_value())
        return rope.Bad(key, expected + array->Dump(80));
      factors.push_back(static_cast<float>(*number));
    }
    if (static_cast<int64_t>(factors.size()) != rotary_size_ / 2) {
      return rope.Bad(key, "expected " + std::to_string(rotary_size_ / 2) + " numbers, got " +
                               std::to_string(factors.size()));
    }
    facts_.tensors.push_back({std::move(name), std::move(factors)});
    return absl::OkStatus();
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
    // Which Hugging Face's loader does not use.
    rope.Ignore({"attn_factor"});
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
    std::vector<float> factors;
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
      factors.push_back(static_cast<float>(divisor));
    }
    facts_.tensors.push_back({"rope_freqs.weight", std::move(factors)});
    return absl::OkStatus();
  }

  // Windows: Qwen's counts only where use_sliding_window says so, that of others is a number.
  absl::Status MakeWindow() {
    const bool is_by_layer = family_.window == ModelFamily::Window::kByLayer;
    ASSIGN_OR_RETURN(const std::optional<int64_t> window,
                     config_.OptionalCount("sliding_window", 0));
    RETURN_IF_ERROR(config_.OnlyBool("use_sliding_window", false));
    if (is_by_layer && window.value_or(0) == 0) {
      return config_.Bad("sliding_window", "expected a number above 0, got none");
    }
    if (family_.window != ModelFamily::Window::kIgnored) {
      SetCount("attention.sliding_window", window.value_or(0), "sliding_window");
    }
    int64_t period = family_.window_period;
    if (family_.window_rope_base > 0) {  // Gemma 3; the class goes by layer_types where it is there
      ASSIGN_OR_RETURN(const std::optional<int64_t> said,
                       config_.OptionalCount("sliding_window_pattern", 1));
      period = said.value_or(period);
      config_.Ignore({"_sliding_window_pattern"});  // version 5 puts down what it was told
    }
    std::vector<bool> has_window;
    for (int64_t i = 0; i < num_layers_; ++i)
      has_window.push_back(period > 0 && (i + 1) % period != 0);
    RETURN_IF_ERROR(ReadLayerTypes(is_by_layer, has_window));
    if (is_by_layer) {
      Add(Key("attention.sliding_window_pattern"), MetadataArray(std::move(has_window)),
          "layer_types");
    }
    return absl::OkStatus();
  }

  absl::Status ReadLayerTypes(bool may_have_window, std::vector<bool>& has_window) {
    const std::optional<JsonValue> types = config_.Take("layer_types");
    if (!types.has_value()) return absl::OkStatus();
    if (!types->is_array() || static_cast<int64_t>(types->size()) != num_layers_) {
      return config_.Bad("layer_types", "expected an array of a type for each of the " +
                                            std::to_string(num_layers_) + " layers");
    }
    has_window.clear();
    for (const JsonValue type : *types) {
      has_window.push_back(may_have_window && type.AsString() == "sliding_attention");
      if (has_window.back() || type.AsString() == "full_attention") continue;
      return config_.Unsupported("layer_types",
                                 std::string("only 'full_attention' ") +
                                     (may_have_window ? "and 'sliding_attention' are" : "is") +
                                     " supported, got " + type.Dump(80));
    }
    return absl::OkStatus();
  }

  absl::Status MakeScales() {
    struct Scale {
      std::string_view key;
      std::string_view name;
    };
    for (const Scale& scale : {Scale{"attention_multiplier", "attention.scale"},
                               {"embedding_multiplier", "embedding_scale"},
                               {"residual_multiplier", "residual_scale"},
                               {"logits_scaling", "logit_scale"}}) {
      if (!family_.has_scales) break;
      ASSIGN_OR_RETURN(const std::optional<double> number, config_.OptionalNumber(scale.key));
      SetNumber(scale.name, number.value_or(1), scale.key);
    }
    if (family_.has_query_scalar) {
      constexpr std::string_view kScalar = "query_pre_attn_scalar";
      ASSIGN_OR_RETURN(const double scalar, config_.Number(kScalar));
      if (!(scalar > 0)) return config_.Bad(kScalar, "expected a number above 0");
      SetNumber("attention.scale", 1.0f / std::sqrt(static_cast<float>(scalar)), kScalar);
    }
    constexpr std::string_view kAttention = "attn_logit_softcapping";
    constexpr std::string_view kFinal = "final_logit_softcapping";
    if (family_.has_softcaps) {
      ASSIGN_OR_RETURN(const double attention, config_.Number(kAttention));
      ASSIGN_OR_RETURN(const double final, config_.Number(kFinal));
      SetNumber(kAttention, attention, kAttention);
      SetNumber(kFinal, final, kFinal);
    } else if (family_.has_query_scalar) {  // Gemma 3, whose class passes the other over
      RETURN_IF_ERROR(config_.OnlyNumber(kAttention, 0));
      ASSIGN_OR_RETURN(const std::optional<double> final, config_.OptionalNumber(kFinal));
      if (final.has_value()) SetNumber(kFinal, *final, kFinal);
    }
    return absl::OkStatus();
  }

  absl::Status MakeTargets() {
    bool has_biases = false;
    if (family_.biases == ModelFamily::Biases::kAsUseQkvBiasSays) {
      ASSIGN_OR_RETURN(const std::optional<bool> said, config_.OptionalBool("use_qkv_bias"));
      has_biases = said.value_or(false);
    } else if (family_.biases == ModelFamily::Biases::kAsAttentionBiasSays) {
      ASSIGN_OR_RETURN(const std::optional<bool> said, config_.OptionalBool("attention_bias"));
      has_biases = said.value_or(false);
    } else if (family_.biases == ModelFamily::Biases::kNone) {
      RETURN_IF_ERROR(config_.OnlyBool("attention_bias", false));
    } else if (config_.Take("attention_bias").has_value()) {
      return config_.Unsupported("attention_bias", "this model class has no such choice");
    }
    ASSIGN_OR_RETURN(const std::optional<bool> tied, config_.OptionalBool("tie_word_embeddings"));
    family_.AddTargets(num_layers_, has_biases, tied.value_or(family_.ties_head), facts_);
    return absl::OkStatus();
  }

  const ModelFamily& family_;
  ConfigReader& config_;
  ConfigFacts& facts_;
  int64_t num_layers_ = 0;
  int64_t head_size_ = 0;
  int64_t rotary_size_ = 0;
  float rope_base_ = 0.0f;
};

}  // namespace

absl::StatusOr<ConfigFacts> ConfigFacts::Read(const std::string& path, const JsonDocument& config) {
  ConfigReader reader(path, config.root());
  const std::optional<JsonValue> classes = reader.Take("architectures");
  std::string known;
  for (const ModelFamily& family : ModelFamily::All()) {
    known += (known.empty() ? "" : ", ") + std::string(family.class_name);
  }
  if (!classes.has_value() || !classes->is_array() || classes->size() != 1 ||
      !(*classes->begin()).is_string()) {
    return reader.Bad("architectures", "expected an array of one of " + known + ", got " +
                                           (classes.has_value() ? classes->Dump(80) : "none"));
  }
  ConfigFacts facts;
  facts.class_name = *(*classes->begin()).AsString();
  for (const ModelFamily& family : ModelFamily::All()) {
    if (family.class_name != facts.class_name) continue;
    RETURN_IF_ERROR(FactMaker(family, reader, facts).Make());
    return facts;
  }
  return reader.Unsupported("architectures",
                            "only " + known + " are supported, got " + Quoted(facts.class_name));
}

}  // namespace sluice::engine
