#include "engine/safetensors/config_reader.h"

#include <cmath>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

constexpr size_t kShown = 80;  // bytes of a value in a message

bool SaysNothing(const JsonValue& value) {
  switch (value.kind()) {
    case JsonKind::kNull:
      return true;
    case JsonKind::kBool:
      return !*value.AsBool();
    case JsonKind::kInteger:
    case JsonKind::kNumber:
      return *value.AsNumber() == 0;
    case JsonKind::kString:
      return value.AsString()->empty();
    case JsonKind::kArray:
    case JsonKind::kObject:
      return value.size() == 0;
  }
  return false;
}

}  // namespace

std::string ConfigReader::Where(std::string_view key, std::string_view text) const {
  return subject_ + ": key " + Quoted(key) + ": " + std::string(text);
}

absl::Status ConfigReader::Bad(std::string_view key, std::string_view text) const {
  return InvalidArgument(Where(key, text));
}

absl::Status ConfigReader::Unsupported(std::string_view key, std::string_view text) const {
  return Unimplemented(Where(key, text));
}

std::optional<JsonValue> ConfigReader::Take(std::string_view key) {
  asked_.emplace(key);
  const std::optional<JsonValue> value = object_.Find(key);
  if (!value.has_value() || value->is_null()) return std::nullopt;
  return value;
}

absl::StatusOr<std::optional<int64_t>> ConfigReader::OptionalCount(std::string_view key,
                                                                   int64_t least, int64_t most) {
  const std::optional<JsonValue> value = Take(key);
  if (!value.has_value()) return std::nullopt;
  const std::optional<int64_t> count = value->AsInteger();
  if (count.has_value() && *count >= least && *count <= most) return count;
  return Bad(key, "expected a whole number from " + std::to_string(least) + " to " +
                      std::to_string(most) + ", got " + value->Dump(kShown));
}

absl::StatusOr<int64_t> ConfigReader::Count(std::string_view key, int64_t least, int64_t most) {
  ASSIGN_OR_RETURN(const std::optional<int64_t> count, OptionalCount(key, least, most));
  if (count.has_value()) return *count;
  return Bad(key, "expected a whole number from " + std::to_string(least) + " to " +
                      std::to_string(most) + ", got none");
}

absl::StatusOr<std::optional<double>> ConfigReader::OptionalNumber(std::string_view key) {
  const std::optional<JsonValue> value = Take(key);
  if (!value.has_value()) return std::nullopt;
  const std::optional<double> number = value->AsNumber();
  if (number.has_value() && std::isfinite(static_cast<float>(*number))) return number;
  return Bad(key, "expected a finite number, got " + value->Dump(kShown));
}

absl::StatusOr<double> ConfigReader::Number(std::string_view key) {
  ASSIGN_OR_RETURN(const std::optional<double> number, OptionalNumber(key));
  if (number.has_value()) return *number;
  return Bad(key, "expected a finite number, got none");
}

absl::StatusOr<std::optional<bool>> ConfigReader::OptionalBool(std::string_view key) {
  const std::optional<JsonValue> value = Take(key);
  if (!value.has_value()) return std::nullopt;
  const std::optional<bool> truth = value->AsBool();
  if (truth.has_value()) return truth;
  return Bad(key, "expected true or false, got " + value->Dump(kShown));
}

absl::StatusOr<std::optional<std::string_view>> ConfigReader::OptionalText(std::string_view key) {
  const std::optional<JsonValue> value = Take(key);
  if (!value.has_value()) return std::nullopt;
  const std::optional<std::string_view> text = value->AsString();
  if (text.has_value()) return text;
  return Bad(key, "expected a string, got " + value->Dump(kShown));
}

absl::Status ConfigReader::OnlyTexts(std::string_view key,
                                     std::initializer_list<std::string_view> texts) {
  ASSIGN_OR_RETURN(const std::optional<std::string_view> text, OptionalText(key));
  if (!text.has_value()) return absl::OkStatus();
  std::string known;
  for (const std::string_view one : texts) {
    if (one == *text) return absl::OkStatus();
    known += (known.empty() ? "" : ", ") + Quoted(one);
  }
  return Unsupported(key, "only " + known + " is supported, got " + Quoted(*text));
}

absl::Status ConfigReader::OnlyBool(std::string_view key, bool neutral) {
  ASSIGN_OR_RETURN(const std::optional<bool> truth, OptionalBool(key));
  if (truth.value_or(neutral) == neutral) return absl::OkStatus();
  return Unsupported(key, std::string("only ") + (neutral ? "true" : "false") + " is supported");
}

absl::Status ConfigReader::OnlyNumber(std::string_view key, double neutral) {
  const std::optional<JsonValue> value = Take(key);
  if (!value.has_value() || value->AsNumber() == neutral) return absl::OkStatus();
  return Unsupported(
      key, "only " + std::to_string(neutral) + " is supported, got " + value->Dump(kShown));
}

void ConfigReader::Ignore(std::initializer_list<std::string_view> keys) {
  for (const std::string_view key : keys) asked_.emplace(key);
}

absl::Status ConfigReader::CheckAllAsked() const {
  for (const JsonValue member : object_) {
    if (asked_.contains(std::string(member.key())) || SaysNothing(member)) continue;
    return Unsupported(member.key(),
                       "this key is not known, and it may change what the model computes; got " +
                           member.Dump(kShown));
  }
  return absl::OkStatus();
}

}  // namespace sluice::engine
