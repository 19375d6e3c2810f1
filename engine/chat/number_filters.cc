#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>

#include "engine/base/status.h"
#include "engine/chat/arguments.h"
#include "engine/chat/filter_table.h"
#include "engine/chat/interpreter.h"
#include "engine/chat/text_operations.h"
#include "engine/chat/unicode.h"

namespace sluice::engine::chat {
namespace {

// Digits with Python's underscores, white space around them taken off; empty: malformed.
std::string Digits(const MarkedText& text) {
  std::string digits = Strip(text, std::nullopt, Side::kBoth).bytes();
  for (size_t i = 0; i < digits.size(); ++i) {
    if (digits[i] != '_') continue;
    const bool between = i > 0 && i + 1 < digits.size() && std::isalnum(digits[i - 1]) != 0 &&
                         std::isalnum(digits[i + 1]) != 0;
    if (!between) return "";
  }
  std::erase(digits, '_');
  return digits;
}

std::optional<int64_t> ParseInt(const MarkedText& text, int base) {
  std::string digits = Digits(text);
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.erase(0, 1);
  const auto prefix = [&](char letter) {
    return digits.size() > 2 && digits[0] == '0' && (digits[1] | 0x20) == letter;
  };
  for (const auto& [letter, of] : {std::pair{'x', 16}, std::pair{'o', 8}, std::pair{'b', 2}}) {
    if (!prefix(letter) || (base != 0 && base != of)) continue;
    base = of;
    digits.erase(0, 2);
  }
  if (base == 0) base = 10;
  if (digits.empty() || digits[0] == '-') return std::nullopt;
  if (negative) digits.insert(0, "-");
  int64_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

std::optional<double> ParseFloat(const MarkedText& text) {
  std::string digits = Digits(text);
  if (digits.starts_with('+')) digits.erase(0, 1);
  if (digits.empty() || digits.find_first_of("xXpP(") != std::string::npos) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(digits.c_str(), &end);
  if (end != digits.c_str() + digits.size()) return std::nullopt;
  return value;
}

absl::StatusOr<Value> Int(Interpreter& /*interpreter*/, const Value& subject,
                          const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("int", arguments, {"default", "base"}));
  ASSIGN_OR_RETURN(const int64_t base, bound.Int(1, 10));
  if (subject.is_undefined()) return UndefinedError(subject);
  std::optional<int64_t> value = subject.AsInt();
  std::optional<double> number;
  if (subject.is_float()) number = subject.as_float();
  if (subject.is_text() && (base == 0 || (base >= 2 && base <= 36))) {
    value = ParseInt(subject.text(), static_cast<int>(base));
    if (!value) number = ParseFloat(subject.text());
  }
  if (number && std::isfinite(*number)) {
    if (!(std::abs(*number) < 9.2e18)) return InvalidArgument("an integer beyond 64 bits");
    value = static_cast<int64_t>(*number);
  }
  if (value) return Value(*value);
  return bound.Has(0) ? bound[0] : Value(int64_t{0});
}

absl::StatusOr<Value> Float(Interpreter& /*interpreter*/, const Value& subject,
                            const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("float", arguments, {"default"}));
  if (subject.is_undefined()) return UndefinedError(subject);
  std::optional<double> value = subject.AsDouble();
  if (subject.is_text()) value = ParseFloat(subject.text());
  if (value) return Value(*value);
  return bound.Has(0) ? bound[0] : Value(0.0);
}

absl::StatusOr<Value> Abs(Interpreter& /*interpreter*/, const Value& subject,
                          const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("abs", arguments, {}).status());
  if (subject.is_undefined()) return UndefinedError(subject);
  if (subject.is_float()) return Value(std::abs(subject.as_float()));
  const auto number = subject.AsInt();
  if (!number) return InvalidArgument("abs needs a number");
  return *number < 0 ? Negate(Value(*number)) : absl::StatusOr<Value>(Value(*number));
}

absl::StatusOr<Value> Round(Interpreter& /*interpreter*/, const Value& subject,
                            const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("round", arguments, {"precision", "method"}));
  ASSIGN_OR_RETURN(const int64_t precision, bound.Int(0, 0));
  std::string method = "common";
  if (bound.Has(1)) {
    ASSIGN_OR_RETURN(const MarkedText* text, bound.Text(1));
    method = text->bytes();
  }
  if (subject.is_undefined()) return UndefinedError(subject);
  const auto number = subject.AsDouble();
  if (!number) return InvalidArgument("round needs a number");
  if (method == "common") {
    if (const auto whole = subject.AsInt(); whole && precision >= 0) return Value(*whole);
    if (precision < 0 || precision > 300) {
      return InvalidArgument("round: the precision must be 0 to 300");
    }
    char text[700];
    std::snprintf(text, sizeof(text), "%.*f", static_cast<int>(precision), *number);
    return Value(std::strtod(text, nullptr));
  }
  if (method != "ceil" && method != "floor") {
    return InvalidArgument("round: method must be common, ceil or floor");
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = *number * scale;
  return Value((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

}  // namespace

Function FindNumberFilter(std::string_view name) {
  if (name == "int") return Int;
  if (name == "float") return Float;
  if (name == "abs") return Abs;
  if (name == "round") return Round;
  return nullptr;
}

}  // namespace sluice::engine::chat
