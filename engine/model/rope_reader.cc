#include "engine/model/rope_reader.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kType = "rope.scaling.type";
constexpr std::string_view kFactor = "rope.scaling.factor";
constexpr std::string_view kAttnFactor = "rope.scaling.attn_factor";
constexpr std::string_view kOriginalContext = "rope.scaling.original_context_length";
constexpr int32_t kMaxOriginalContext = 1 << 24;

// What rope.scaling.* says.
struct Scaling {
  enum class Kind { kNone, kLinear, kYarn, kLongrope };
  Kind kind = Kind::kNone;
  float factor = 1.0f;
  // yarn and longrope:
  int32_t original_context = 0;
  float magnitude = 1.0f;
  // yarn:
  float beta_fast = 32.0f;  // rotations within the original context above which a frequency stays
  float beta_slow = 1.0f;   // and below which it is divided by the factor
};

absl::Status Missing(const FactReader& facts, std::string_view name, const std::string& expected) {
  return facts.Bad(name, "expected " + expected + ", got none: it is missing from the file");
}

// 1 + 0.1 m ln(factor): how much larger yarn makes cos and sin.
double YarnMagnitude(double factor, double multiplier) {
  return factor <= 1.0 ? 1.0 : 0.1 * multiplier * std::log(factor) + 1.0;
}

// Hugging Face's attention_factor is the magnitude itself. Converters write attn_factor under the
// same key, a number that Hugging Face ignores: 1 / (1 + 0.1 ln(factor)) in the models that have
// it. No magnitude is below 1, so the two cannot be mistaken for each other.
absl::StatusOr<std::optional<float>> ReadYarnMagnitude(FactReader& facts, const Scaling& scaling,
                                                       ModelConfig& config) {
  constexpr std::string_view kName = "rope.scaling.yarn_attn_factor";
  ASSIGN_OR_RETURN(const std::optional<float> said, facts.OptionalPositive(kName));
  const double inverse = 1.0 / YarnMagnitude(scaling.factor, 1.0);
  if (!said.has_value() || inverse == 1.0 || std::fabs(*said - inverse) > 1e-4 * inverse) {
    return said;
  }
  config.notes.push_back("'" + facts.FullKey(kName) + "' is " + NumberString(*said) +
                         ", the inverse of yarn's own magnitude: not used, as Hugging Face does "
                         "not use 'attn_factor'");
  return std::nullopt;
}

absl::Status ReadYarn(FactReader& facts, Scaling& scaling, ModelConfig& config) {
  ASSIGN_OR_RETURN(scaling.original_context, facts.Count(kOriginalContext, 1, kMaxOriginalContext));
  if (scaling.factor < 1.0f) {
    return facts.Bad(kFactor, "expected at least 1 for yarn, got " + NumberString(scaling.factor));
  }
  RETURN_IF_ERROR(facts.OnlyNumber("rope.scaling.yarn_ext_factor", 1));
  ASSIGN_OR_RETURN(const std::optional<float> fast,
                   facts.OptionalPositive("rope.scaling.yarn_beta_fast"));
  ASSIGN_OR_RETURN(const std::optional<float> slow,
                   facts.OptionalPositive("rope.scaling.yarn_beta_slow"));
  scaling.beta_fast = fast.value_or(scaling.beta_fast);
  scaling.beta_slow = slow.value_or(scaling.beta_slow);
  if (scaling.beta_fast < scaling.beta_slow) {
    return facts.Bad(
        fast.has_value() ? "rope.scaling.yarn_beta_fast" : "rope.scaling.yarn_beta_slow",
        "expected beta_fast to be at least beta_slow, got " + NumberString(scaling.beta_fast) +
            " and " + NumberString(scaling.beta_slow));
  }
  // Hugging Face's mscale_all_dim, beside an mscale of 1.
  ASSIGN_OR_RETURN(const std::optional<float> log_multiplier,
                   facts.OptionalPositive("rope.scaling.yarn_log_multiplier"));
  ASSIGN_OR_RETURN(const std::optional<float> magnitude, ReadYarnMagnitude(facts, scaling, config));
  if (magnitude.has_value() && log_multiplier.has_value()) {
    return facts.Bad("rope.scaling.yarn_attn_factor",
                     "expected it or 'rope.scaling.yarn_log_multiplier', got both");
  }
  ASSIGN_OR_RETURN(const std::optional<float> more, facts.OptionalPositive(kAttnFactor));
  double computed = YarnMagnitude(scaling.factor, 1.0);
  if (log_multiplier.has_value()) computed /= YarnMagnitude(scaling.factor, *log_multiplier);
  scaling.magnitude = static_cast<float>(magnitude.value_or(computed) * more.value_or(1.0f));
  return absl::OkStatus();
}

absl::StatusOr<Scaling> ReadLongrope(FactReader& facts) {
  Scaling scaling;
  scaling.kind = Scaling::Kind::kLongrope;
  ASSIGN_OR_RETURN(const std::optional<std::string_view> type, facts.OptionalText(kType));
  if (type.value_or("longrope") != "longrope") {
    return facts.Bad(kType,
                     "expected 'longrope', since there is tensor "
                     "'rope_factors_long.weight', got " +
                         Quoted(*type));
  }
  RETURN_IF_ERROR(facts.OnlyNumber(kFactor, 1));
  ASSIGN_OR_RETURN(scaling.original_context, facts.Count(kOriginalContext, 1, kMaxOriginalContext));
  ASSIGN_OR_RETURN(scaling.magnitude, facts.Positive(kAttnFactor));
  return scaling;
}

// 0 is how converters write that nothing is scaled.
absl::StatusOr<std::optional<float>> ReadFactor(std::string_view name, FactReader& facts) {
  ASSIGN_OR_RETURN(const std::optional<float> factor, facts.OptionalPositiveOrZero(name));
  return factor == 0.0f ? 1.0f : factor;
}

absl::StatusOr<Scaling> ReadScaling(const Architecture& architecture, FactReader& facts,
                                    ModelConfig& config) {
  if (!architecture.finetuned_says_rotated) facts.Ignore("rope.scaling.finetuned");
  if (config.has_long_factors) return ReadLongrope(facts);
  // Where the model was scaled from: of no consequence but to yarn.
  facts.Ignore(kOriginalContext);
  ASSIGN_OR_RETURN(const std::optional<std::string_view> type, facts.OptionalText(kType));
  ASSIGN_OR_RETURN(const std::optional<float> factor, ReadFactor(kFactor, facts));
  ASSIGN_OR_RETURN(const std::optional<float> old_factor, ReadFactor("rope.scale_linear", facts));
  Scaling scaling;
  scaling.factor = factor.value_or(1.0f);
  if (!type.has_value()) {
    if (scaling.factor != 1.0f) {
      return Missing(facts, kType,
                     "one, since 'rope.scaling.factor' is " + NumberString(scaling.factor));
    }
    scaling.factor = old_factor.value_or(1.0f);
    scaling.kind = Scaling::Kind::kLinear;
  } else if (*type == "linear") {
    scaling.kind = Scaling::Kind::kLinear;
  } else if (*type == "yarn") {
    scaling.kind = Scaling::Kind::kYarn;
  } else if (*type != "none") {
    return facts.Unsupported(
        kType, "only 'none', 'linear' and 'yarn' are supported, got " + Quoted(*type));
  } else if (scaling.factor != 1.0f) {
    return facts.Bad(kFactor, "expected 1, since 'rope.scaling.type' is 'none', got " +
                                  NumberString(scaling.factor));
  }
  if (type.has_value() && *type != "none" && !factor.has_value()) {
    return Missing(facts, kFactor, "a finite number above 0");
  }
  if (old_factor.value_or(scaling.factor) != scaling.factor) {
    return facts.Bad("rope.scale_linear", "expected 'rope.scaling.factor', " +
                                              NumberString(scaling.factor) + ", got " +
                                              NumberString(*old_factor));
  }
  if (scaling.kind == Scaling::Kind::kYarn) {
    RETURN_IF_ERROR(ReadYarn(facts, scaling, config));
  } else {
    RETURN_IF_ERROR(facts.OnlyNumber(kAttnFactor, 1));
    for (const char* name : {"rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor",
                             "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
                             "rope.scaling.yarn_log_multiplier"}) {
      if (facts.Has(name)) {
        return facts.Bad(name, "expected it only where 'rope.scaling.type' is 'yarn'");
      }
    }
  }
  return scaling;
}

// Divisors of the frequencies [rotary / 2], as Llama 3.1 files have them; empty when the file has
// none.
absl::StatusOr<std::vector<float>> ReadFactors(const ModelFile& file, const std::string& name,
                                               int32_t rotary_size) {
  const FileTensor* tensor = file.FindTensor(name);
  if (tensor == nullptr) return std::vector<float>();
  std::vector<float> factors(static_cast<size_t>(rotary_size / 2));
  const std::string subject = file.path() + ": tensor '" + name + "': ";
  if (tensor->type != kernels::DType::kF32 || tensor->cols() * tensor->rows() != factors.size()) {
    return InvalidArgument(subject + "expected " + DimsString({factors.size()}) + " F32, got " +
                           tensor->ShapeString() + tensor->At());
  }
  RETURN_IF_ERROR(file.Read(tensor->offset, std::as_writable_bytes(std::span(factors))));
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!std::isfinite(factors[i]) || factors[i] <= 0.0f) {
      return InvalidArgument(subject + "value " + std::to_string(i) +
                             ": expected a finite number above 0, got " + NumberString(factors[i]) +
                             " (at byte " + std::to_string(tensor->offset + 4 * i) + ")");
    }
  }
  return factors;
}

// The pair that turns `rotations` times within the original context; no whole number.
double YarnPair(const Scaling& scaling, const RopeTable& table, double rotations) {
  constexpr double kTwoPi = 6.283185307179586;
  return table.rotary_size * std::log(scaling.original_context / (rotations * kTwoPi)) /
         (2.0 * std::log(double{table.base}));
}

// Frequencies as the reference computes them, in f32: linear scaling divides all by the factor,
// yarn those that turn seldom within the original context, with a ramp between.
void SetFrequencies(const Scaling& scaling, std::span<const float> factors, RopeTable& table) {
  double low = 0.0, high = 0.0;
  if (scaling.kind == Scaling::Kind::kYarn) {
    low = std::max(std::floor(YarnPair(scaling, table, scaling.beta_fast)), 0.0);
    high =
        std::min(std::ceil(YarnPair(scaling, table, scaling.beta_slow)), table.rotary_size - 1.0);
    if (low == high) high += 0.001;
  }
  table.magnitude = scaling.magnitude;
  const auto rotary_values = static_cast<float>(table.rotary_size);
  for (int32_t i = 0; i < table.rotary_size / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / rotary_values;
    float frequency = 1.0f / std::pow(table.base, exponent);
    if (!factors.empty()) frequency /= factors[static_cast<size_t>(i)];
    if (scaling.kind == Scaling::Kind::kYarn) {
      const auto ramp = static_cast<float>(std::clamp((i - low) / (high - low), 0.0, 1.0));
      frequency = frequency / scaling.factor * ramp + frequency * (1.0f - ramp);
    } else {
      frequency /= scaling.factor;
    }
    table.inverse_frequencies.push_back(frequency);
  }
}

absl::Status CheckFrequencies(const FactReader& facts, const RopeTable& table) {
  for (size_t i = 0; i < table.inverse_frequencies.size(); ++i) {
    if (std::isfinite(table.inverse_frequencies[i])) continue;
    return facts.Bad("rope.freq_base", "expected finite rotary frequencies, got " +
                                           NumberString(table.inverse_frequencies[i]) +
                                           " for pair " + std::to_string(i));
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> ReadRotarySize(const Architecture& architecture, FactReader& facts,
                                       const ModelConfig& config) {
  ASSIGN_OR_RETURN(const std::optional<int32_t> rotary,
                   facts.OptionalCount("rope.dimension_count", 2, config.head_size));
  if (!rotary.has_value() && architecture.needs_rotary_size) {
    return Missing(facts, "rope.dimension_count", "2 to " + std::to_string(config.head_size));
  }
  const int32_t size = rotary.value_or(config.head_size);
  if (size % 2 != 0) {
    return facts.Bad("rope.dimension_count",
                     "expected an even number, got " + std::to_string(size));
  }
  return size;
}

absl::Status CheckYarn(const FactReader& facts, const RopeTable& table,
                       std::span<const float> factors) {
  if (!factors.empty()) {
    return facts.Unsupported(kType, "'yarn' is not supported beside tensor 'rope_freqs.weight'");
  }
  if (table.base <= 1.0f) {
    return facts.Bad("rope.freq_base",
                     "expected more than 1 for yarn, got " + NumberString(table.base));
  }
  return absl::OkStatus();
}

void EndContextAt(int32_t positions, const std::string& why, ModelConfig& config) {
  if (config.context_length <= positions) return;
  config.notes.push_back("the context ends at " + std::to_string(positions) + " of " +
                         std::to_string(config.context_length) + " positions, where " + why);
  config.context_length = positions;
}

// Ministral 3 multiplies queries at position p by 1 + t ln(1 + floor(p / original context)): by 1
// as long as the context ends there.
absl::Status ReadTemperature(const Scaling& scaling, FactReader& facts, ModelConfig& config) {
  constexpr std::string_view kTemperature = "attention.temperature_scale";
  ASSIGN_OR_RETURN(const std::optional<float> temperature, facts.OptionalPositive(kTemperature));
  if (!temperature.has_value()) return absl::OkStatus();
  if (scaling.kind != Scaling::Kind::kYarn) {
    return facts.Bad(kTemperature, "expected it only where 'rope.scaling.type' is 'yarn'");
  }
  EndContextAt(scaling.original_context, "the model begins to scale its queries", config);
  return absl::OkStatus();
}

// The table of layers with a window, which no scaling applies to.
absl::Status AddWindowRope(const Architecture& architecture, FactReader& facts,
                           ModelConfig& config) {
  RopeTable table;
  table.style = architecture.rope_style;
  table.rotary_size = config.ropes.front().rotary_size;
  ASSIGN_OR_RETURN(const std::optional<float> base, facts.OptionalPositive("rope.freq_base_swa"));
  ASSIGN_OR_RETURN(const std::optional<float> local,
                   facts.OptionalPositive("rope.local.freq_base"));
  table.base = base.value_or(local.value_or(architecture.window_rope_base));
  SetFrequencies({}, {}, table);
  RETURN_IF_ERROR(CheckFrequencies(facts, table));
  config.ropes.push_back(std::move(table));
  return absl::OkStatus();
}

absl::StatusOr<float> ReadBase(const Architecture& architecture, FactReader& facts,
                               ModelConfig& config) {
  constexpr std::string_view kBase = "rope.freq_base";
  ASSIGN_OR_RETURN(const std::optional<float> base, facts.OptionalPositive(kBase));
  if (base.has_value()) return *base;
  // Files of Gemma 3 with their vision models name the two bases in their own way.
  if (architecture.window_rope_base > 0.0f) {
    ASSIGN_OR_RETURN(const std::optional<float> global,
                     facts.OptionalPositive("rope.global.freq_base"));
    if (global.has_value()) return *global;
  }
  if (architecture.default_rope_base == 0.0f) {
    return Missing(facts, kBase, "a finite number above 0");
  }
  if (!architecture.never_says_rope_base) {
    config.notes.push_back("the file does not say '" + facts.FullKey(kBase) + "': taken as " +
                           NumberString(architecture.default_rope_base));
  }
  return architecture.default_rope_base;
}

}  // namespace

absl::Status ReadRopes(const ModelFile& file, const Architecture& architecture, FactReader& facts,
                       ModelConfig& config, kernels::PlantedBug bug) {
  RopeTable table;
  ASSIGN_OR_RETURN(const std::optional<std::string_view> layout,
                   facts.OptionalText("tensor_data_layout"));
  table.style =
      layout == kHuggingFaceLayout ? kernels::RopeStyle::kHalfSplit : architecture.rope_style;
  ASSIGN_OR_RETURN(table.base, ReadBase(architecture, facts, config));
  if (kernels::IsPlanted(bug, kernels::PlantedBug::kRopeBaseTenThousand)) table.base = 10000.0f;
  ASSIGN_OR_RETURN(table.rotary_size, ReadRotarySize(architecture, facts, config));
  ASSIGN_OR_RETURN(const Scaling scaling, ReadScaling(architecture, facts, config));
  ASSIGN_OR_RETURN(std::vector<float> factors,
                   ReadFactors(file, "rope_freqs.weight", table.rotary_size));
  if (scaling.kind == Scaling::Kind::kYarn) {
    RETURN_IF_ERROR(CheckYarn(facts, table, factors));
  } else if (scaling.kind == Scaling::Kind::kLongrope) {
    // Read for their checks alone.
    ASSIGN_OR_RETURN(factors, ReadFactors(file, "rope_factors_long.weight", table.rotary_size));
    ASSIGN_OR_RETURN(factors, ReadFactors(file, "rope_factors_short.weight", table.rotary_size));
    EndContextAt(scaling.original_context, "the model's rotary factors for short sequences end",
                 config);
  }
  SetFrequencies(scaling, factors, table);
  RETURN_IF_ERROR(CheckFrequencies(facts, table));
  config.ropes.push_back(std::move(table));
  if (architecture.may_have_temperature) {
    RETURN_IF_ERROR(ReadTemperature(scaling, facts, config));
  }
  if (architecture.window_rope_base > 0.0f)
    RETURN_IF_ERROR(AddWindowRope(architecture, facts, config));
  return absl::OkStatus();
}

}  // namespace sluice::engine
