#include "engine/model/fact_reader.h"

#include <charconv>
#include <cmath>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {

std::string NumberString(double value) {
  char digits[64];
  // As people write it: 100000, not 1e+05; but 1e-05, not 0.00001.
  const double magnitude = std::fabs(value);
  const auto format = magnitude == 0.0 || (magnitude >= 1e-3 && magnitude < 1e9)
                          ? std::chars_format::fixed
                          : std::chars_format::general;
  // Facts are stored as f32: digits beyond it are noise.
  const auto narrow = static_cast<float>(value);
  const std::to_chars_result result =
      static_cast<double>(narrow) == value
          ? std::to_chars(digits, digits + sizeof(digits), narrow, format)
          : std::to_chars(digits, digits + sizeof(digits), value, format);
  return std::string(digits, result.ptr);
}

FactReader::FactReader(const ModelFile& file, std::string architecture)
    : file_(file), prefix_(std::move(architecture) + ".") {}

std::string FactReader::Where(std::string_view name, std::string_view text) const {
  const std::string key = FullKey(name);
  std::string out = file_.path() + ": key " + Quoted(key) + ": ";
  out.append(text);
  return out + file_.At(key);
}

absl::Status FactReader::Bad(std::string_view name, std::string_view text) const {
  return InvalidArgument(Where(name, text));
}

absl::Status FactReader::Unsupported(std::string_view name, std::string_view text) const {
  return Unimplemented(Where(name, text));
}

absl::StatusOr<std::optional<int32_t>> FactReader::OptionalCount(std::string_view name,
                                                                 int32_t least, int32_t most) {
  const std::string key = FullKey(name);
  asked_.insert(key);
  const MetadataValue* value = file_.Find(key);
  if (value != nullptr && std::holds_alternative<MetadataArray>(*value)) {
    return Unsupported(name, "expected one integer for all layers, got " + TypeName(*value));
  }
  ASSIGN_OR_RETURN(const std::optional<uint64_t> count, file_.GetUint(key));
  if (!count.has_value()) return std::nullopt;
  if (*count < static_cast<uint64_t>(least) || *count > static_cast<uint64_t>(most)) {
    return Bad(name, "expected " + std::to_string(least) + " to " + std::to_string(most) +
                         ", got " + std::to_string(*count));
  }
  return static_cast<int32_t>(*count);
}

absl::StatusOr<int32_t> FactReader::Count(std::string_view name, int32_t least, int32_t most) {
  ASSIGN_OR_RETURN(const std::optional<int32_t> count, OptionalCount(name, least, most));
  if (count.has_value()) return *count;
  return Bad(name, "expected " + std::to_string(least) + " to " + std::to_string(most) +
                       ", got none: it is missing from the file");
}

absl::StatusOr<std::optional<float>> FactReader::OptionalPositive(std::string_view name) {
  const std::string key = FullKey(name);
  asked_.insert(key);
  ASSIGN_OR_RETURN(const std::optional<double> value, file_.GetFloat(key));
  if (!value.has_value()) return std::nullopt;
  const auto narrow = static_cast<float>(*value);
  if (!std::isfinite(narrow) || narrow <= 0.0f) {
    return Bad(name, "expected a finite number above 0, got " + NumberString(*value));
  }
  return narrow;
}

absl::StatusOr<std::optional<float>> FactReader::OptionalPositiveOrZero(std::string_view name) {
  const std::string key = FullKey(name);
  asked_.insert(key);
  ASSIGN_OR_RETURN(const std::optional<double> value, file_.GetFloat(key));
  if (value == 0.0) return 0.0f;
  return OptionalPositive(name);
}

absl::StatusOr<float> FactReader::Positive(std::string_view name) {
  ASSIGN_OR_RETURN(const std::optional<float> value, OptionalPositive(name));
  if (value.has_value()) return *value;
  return Bad(name, "expected a finite number above 0, got none: it is missing from the file");
}

absl::StatusOr<std::optional<std::string_view>> FactReader::OptionalText(std::string_view name) {
  const std::string key = FullKey(name);
  asked_.insert(key);
  return file_.GetString(key);
}

absl::StatusOr<std::optional<bool>> FactReader::OptionalBool(std::string_view name) {
  const std::string key = FullKey(name);
  asked_.insert(key);
  return file_.GetBool(key);
}

absl::StatusOr<std::optional<std::vector<bool>>> FactReader::OptionalPattern(std::string_view name,
                                                                             int32_t num_layers) {
  const std::string key = FullKey(name);
  asked_.insert(key);
  const MetadataValue* value = file_.Find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* array = std::get_if<MetadataArray>(value)) {
    const auto* flags = std::get_if<std::vector<bool>>(array);
    if (flags != nullptr && flags->size() == static_cast<size_t>(num_layers)) return *flags;
    return Bad(name, "expected " + std::to_string(num_layers) + " bools, one for each layer, got " +
                         (flags == nullptr ? TypeName(*value) : std::to_string(flags->size())));
  }
  ASSIGN_OR_RETURN(const std::optional<int32_t> period, OptionalCount(name, 0, 1024));
  std::vector<bool> flags(static_cast<size_t>(num_layers));
  for (int32_t i = 0; i < num_layers; ++i) {
    flags[static_cast<size_t>(i)] = *period == 0 || (i + 1) % *period != 0;
  }
  return flags;
}

absl::Status FactReader::OnlyNumber(std::string_view name, double neutral, double tolerance) {
  const std::string key = FullKey(name);
  asked_.insert(key);
  const MetadataValue* value = file_.Find(key);
  if (value == nullptr) return absl::OkStatus();
  std::string got;
  if (std::holds_alternative<float>(*value) || std::holds_alternative<double>(*value)) {
    ASSIGN_OR_RETURN(const std::optional<double> number, file_.GetFloat(key));
    if (std::fabs(*number - neutral) <= tolerance * std::fabs(neutral)) return absl::OkStatus();
    got = NumberString(*number);
  } else if (std::holds_alternative<MetadataArray>(*value)) {
    got = TypeName(*value);
  } else {
    ASSIGN_OR_RETURN(const std::optional<uint64_t> number, file_.GetUint(key));
    if (static_cast<double>(*number) == neutral) return absl::OkStatus();
    got = std::to_string(*number);
  }
  return Unsupported(name, "only " + NumberString(neutral) + " is supported, got " + got);
}

absl::Status FactReader::OnlyBool(std::string_view name, bool neutral) {
  ASSIGN_OR_RETURN(const std::optional<bool> value, OptionalBool(name));
  if (value.value_or(neutral) == neutral) return absl::OkStatus();
  return Unsupported(name, std::string("only ") + (neutral ? "true" : "false") + " is supported");
}

bool FactReader::IgnoreAll(std::string_view prefix) {
  const std::string begin = FullKey(prefix);
  bool any = false;
  for (const ModelFile::Entry& entry : file_.entries()) {
    if (!std::string_view(entry.key).starts_with(begin)) continue;
    asked_.insert(entry.key);
    any = true;
  }
  return any;
}

absl::Status FactReader::CheckAllAsked() const {
  for (const ModelFile::Entry& entry : file_.entries()) {
    const std::string_view key = entry.key;
    if (!key.starts_with(prefix_) || asked_.contains(entry.key)) continue;
    return Unsupported(key.substr(prefix_.size()),
                       "this fact is not known, and it may change what the model computes");
  }
  return absl::OkStatus();
}

}  // namespace sluice::engine
