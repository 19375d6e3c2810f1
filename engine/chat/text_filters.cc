#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/chat/arguments.h"
#include "engine/chat/filter_table.h"
#include "engine/chat/interpreter.h"
#include "engine/chat/json_text.h"
#include "engine/chat/percent_format.h"
#include "engine/chat/text_operations.h"
#include "engine/chat/unicode.h"
#include "engine/chat/value_text.h"

namespace sluice::engine::chat {
namespace {

template <Case kCase>
absl::StatusOr<Value> ChangeCaseFilter(Interpreter& interpreter, const Value& subject,
                                       const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("filter", arguments, {}).status());
  ASSIGN_OR_RETURN(const MarkedText text, ToText(subject, interpreter.budget()));
  RETURN_IF_ERROR(interpreter.budget().Text(text.size()));
  return Value(ChangeCase(text, kCase));
}

// Words begin after spaces, dashes and opening brackets, unlike those of str.title.
absl::StatusOr<Value> Title(Interpreter& interpreter, const Value& subject,
                            const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("title", arguments, {}).status());
  ASSIGN_OR_RETURN(const MarkedText text, ToText(subject, interpreter.budget()));
  RETURN_IF_ERROR(interpreter.budget().Text(text.size()));
  const CodePoints points(text.bytes());
  const auto splits = [&points](size_t i) {
    const char32_t c = points.values[i];
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || IsSpace(c);
  };
  const auto piece = [&](size_t begin, size_t end) {
    return text.Substr(points.offsets[begin], points.offsets[end] - points.offsets[begin]);
  };
  MarkedText out;
  const size_t count = points.values.size();
  for (size_t begin = 0; begin < count;) {
    size_t end = begin + 1;
    while (end < count && splits(end) == splits(begin)) ++end;
    out.Append(ChangeCase(piece(begin, begin + 1), Case::kUpper));
    out.Append(ChangeCase(piece(begin + 1, end), Case::kLower));
    begin = end;
  }
  return Value(std::move(out));
}

absl::StatusOr<Value> Trim(Interpreter& interpreter, const Value& subject,
                           const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("trim", arguments, {"chars"}));
  ASSIGN_OR_RETURN(const MarkedText text, ToText(subject, interpreter.budget()));
  ASSIGN_OR_RETURN(const MarkedText* characters, bound.OptionalText(0));
  RETURN_IF_ERROR(interpreter.budget().Text(text.size()));
  if (characters == nullptr) return Value(Strip(text, std::nullopt, Side::kBoth));
  return Value(Strip(text, characters->bytes(), Side::kBoth));
}

absl::StatusOr<Value> String(Interpreter& interpreter, const Value& subject,
                             const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("string", arguments, {}).status());
  if (subject.is_text()) return subject;
  ASSIGN_OR_RETURN(MarkedText text, ToText(subject, interpreter.budget()));
  return Value(std::move(text));
}

absl::StatusOr<Value> ReplaceFilter(Interpreter& interpreter, const Value& subject,
                                    const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("replace", arguments, {"old", "new", "count"}, 2));
  Budget& budget = interpreter.budget();
  ASSIGN_OR_RETURN(const MarkedText text, ToText(subject, budget));
  ASSIGN_OR_RETURN(const MarkedText old, ToText(bound[0], budget));
  ASSIGN_OR_RETURN(const MarkedText replacement, ToText(bound[1], budget));
  ASSIGN_OR_RETURN(const int64_t count, bound.Int(2, -1));
  ASSIGN_OR_RETURN(MarkedText out, ReplaceWithin(text, old.bytes(), replacement,
                                                 count < 0 ? kEverywhere : count, budget));
  return Value(std::move(out));
}

absl::StatusOr<Value> Indent(Interpreter& interpreter, const Value& subject,
                             const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("indent", arguments, {"width", "first", "blank"}));
  Budget& budget = interpreter.budget();
  if (subject.is_undefined()) return UndefinedError(subject);
  if (!subject.is_text()) {
    return InvalidArgument("indent needs a str, not " + std::string(subject.TypeName()));
  }
  MarkedText indention;
  if (bound.Has(0) && bound[0].is_text()) {
    indention = bound[0].text();
  } else {
    ASSIGN_OR_RETURN(const int64_t width, bound.Int(0, 4));
    RETURN_IF_ERROR(budget.Text(static_cast<size_t>(std::max<int64_t>(0, width))));
    indention.Append(std::string(static_cast<size_t>(std::max<int64_t>(0, width)), ' '), kContent);
  }
  MarkedText ended = subject.text();
  ended.Append("\n", kContent);
  const std::vector<MarkedText> lines = SplitLines(ended, false);
  const bool blank = bound.Bool(2, false);
  RETURN_IF_ERROR(budget.Text(ended.size() + lines.size() * (indention.size() + 1)));
  MarkedText out;
  if (bound.Bool(1, false)) out.Append(indention);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Append("\n", kContent);
    if (i > 0 && (blank || !lines[i].empty())) out.Append(indention);
    out.Append(lines[i]);
  }
  return Value(std::move(out));
}

absl::StatusOr<Value> Join(Interpreter& interpreter, const Value& subject,
                           const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("join", arguments, {"d", "attribute"}));
  Budget& budget = interpreter.budget();
  MarkedText separator;
  if (bound.Has(0)) {
    ASSIGN_OR_RETURN(separator, ToText(bound[0], budget));
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(subject, budget));
  MarkedText out;
  for (size_t i = 0; i < items.size(); ++i) {
    Value item = items[i];
    if (bound.Has(1) && !bound[1].is_none()) {
      ASSIGN_OR_RETURN(item, AttributePath(interpreter, item, bound[1], nullptr));
    }
    ASSIGN_OR_RETURN(const MarkedText text, ToText(item, budget));
    RETURN_IF_ERROR(
        budget.Grow(out.size(), out.size() + text.size() + (i > 0 ? separator.size() : 0)));
    if (i > 0) out.Append(separator);
    out.Append(text);
  }
  return Value(std::move(out));
}

absl::StatusOr<Value> ToJsonFilter(Interpreter& interpreter, const Value& subject,
                                   const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("tojson", arguments,
                                        {"ensure_ascii", "indent", "separators", "sort_keys"}));
  JsonStyle style;
  style.ascii_only = bound.Bool(0, false);
  style.sorts_keys = bound.Bool(3, false);
  if (bound.Has(1) && !bound[1].is_none()) {
    style.item_separator = ",";
    if (bound[1].is_text()) {
      style.indent = bound[1].bytes();
    } else {
      ASSIGN_OR_RETURN(const int64_t width, bound.Int(1, 0));
      style.indent = std::string(static_cast<size_t>(std::clamp<int64_t>(width, 0, 1000)), ' ');
    }
  }
  if (bound.Has(2) && !bound[2].is_none()) {
    ASSIGN_OR_RETURN(const std::vector<Value> pair, ItemsOf(bound[2], interpreter.budget()));
    if (pair.size() != 2 || !pair[0].is_text() || !pair[1].is_text()) {
      return InvalidArgument("tojson: separators must be two strings");
    }
    style.item_separator = pair[0].bytes();
    style.key_separator = pair[1].bytes();
  }
  ASSIGN_OR_RETURN(MarkedText json, ToJson(subject, style, interpreter.budget()));
  return Value(std::move(json));
}

absl::StatusOr<Value> Escape(Interpreter& interpreter, const Value& subject,
                             const Arguments& arguments) {
  static constexpr std::pair<std::string_view, std::string_view> kEscapes[] = {
      {"&", "&amp;"}, {">", "&gt;"}, {"<", "&lt;"}, {"'", "&#39;"}, {"\"", "&#34;"}};
  RETURN_IF_ERROR(BoundArguments::Bind("escape", arguments, {}).status());
  ASSIGN_OR_RETURN(MarkedText text, ToText(subject, interpreter.budget()));
  for (const auto& [from, to] : kEscapes) {
    ASSIGN_OR_RETURN(text, ReplaceWithin(text, from, MarkedText(std::string(to), kContent),
                                         kEverywhere, interpreter.budget()));
  }
  return Value(std::move(text));
}

absl::StatusOr<Value> Center(Interpreter& interpreter, const Value& subject,
                             const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("center", arguments, {"width"}));
  ASSIGN_OR_RETURN(const MarkedText text, ToText(subject, interpreter.budget()));
  ASSIGN_OR_RETURN(const int64_t width, bound.Int(0, 80));
  RETURN_IF_ERROR(interpreter.budget().Text(static_cast<size_t>(std::max<int64_t>(0, width))));
  return Value(Pad(text, width, " ", Side::kBoth));
}

absl::StatusOr<Value> Truncate(Interpreter& interpreter, const Value& subject,
                               const Arguments& arguments) {
  ASSIGN_OR_RETURN(
      const auto bound,
      BoundArguments::Bind("truncate", arguments, {"length", "killwords", "end", "leeway"}));
  ASSIGN_OR_RETURN(const int64_t length, bound.Int(0, 255));
  ASSIGN_OR_RETURN(const int64_t leeway, bound.Int(3, 5));
  ASSIGN_OR_RETURN(const MarkedText* given_end, bound.OptionalText(2));
  const MarkedText end = given_end == nullptr ? MarkedText("...", kContent) : *given_end;
  const auto end_length = static_cast<int64_t>(CountCodePoints(end.bytes()));
  if (length < end_length || leeway < 0) {
    return InvalidArgument("truncate: length or leeway is too small");
  }
  ASSIGN_OR_RETURN(const int64_t whole, LengthOf(subject));
  if (whole <= length || whole - length <= leeway) return subject;
  if (!subject.is_text()) {
    return InvalidArgument("truncate needs a str, not " + std::string(subject.TypeName()));
  }
  const MarkedText& text = subject.text();
  const CodePoints points(text.bytes());
  RETURN_IF_ERROR(interpreter.budget().Text(text.size()));
  MarkedText out = text.Substr(0, points.offsets[static_cast<size_t>(length - end_length)]);
  if (!bound.Bool(1, false)) out = Split(out, " ", 1, Side::kRight)[0];
  out.Append(end);
  return Value(std::move(out));
}

absl::StatusOr<Value> WordCount(Interpreter& interpreter, const Value& subject,
                                const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("wordcount", arguments, {}).status());
  ASSIGN_OR_RETURN(const MarkedText text, ToText(subject, interpreter.budget()));
  int64_t count = 0;
  bool in_word = false;
  for (const char32_t c : CodePoints(text.bytes()).values) {
    const bool is_word = IsAlpha(c) || IsNumeric(c) || c == '_';
    count += is_word && !in_word ? 1 : 0;
    in_word = is_word;
  }
  return Value(count);
}

absl::StatusOr<Value> Format(Interpreter& interpreter, const Value& subject,
                             const Arguments& arguments) {
  if (!arguments.named.empty() && !arguments.positional.empty()) {
    return InvalidArgument("format takes either positional or keyword arguments");
  }
  ASSIGN_OR_RETURN(const MarkedText text, ToText(subject, interpreter.budget()));
  Value values = Value::Tuple(arguments.positional);
  if (!arguments.named.empty()) {
    auto dict = std::make_shared<Dict>();
    for (const auto& [name, value] : arguments.named) dict->Set(Value::Content(name), value);
    values = Value(Value::DictPtr(std::move(dict)));
  }
  ASSIGN_OR_RETURN(MarkedText out, FormatPercent(text, values, interpreter.budget()));
  return Value(std::move(out));
}

}  // namespace

absl::StatusOr<MarkedText> ReplaceWithin(const MarkedText& text, std::string_view old,
                                         const MarkedText& replacement, int64_t most,
                                         Budget& budget) {
  // At most so many places there can be; a count takes as long as the work itself.
  size_t places = 0;
  if (replacement.size() > old.size()) {
    if (old.empty()) {
      places = text.size() + 1;
    } else {
      for (size_t at = Find(text.bytes(), old, 0); at != std::string_view::npos;
           at = Find(text.bytes(), old, at + old.size())) {
        ++places;
      }
    }
    places = std::min(places, static_cast<size_t>(most));
  }
  size_t growth = 0;
  if (__builtin_mul_overflow(places, replacement.size(), &growth)) growth = SIZE_MAX / 2;
  RETURN_IF_ERROR(budget.Text(text.size() + growth));
  return Replace(text, old, replacement, most);
}

Function FindTextFilter(std::string_view name) {
  static constexpr std::pair<std::string_view, Function> kFilters[] = {
      {"upper", ChangeCaseFilter<Case::kUpper>},
      {"lower", ChangeCaseFilter<Case::kLower>},
      {"capitalize", ChangeCaseFilter<Case::kCapitalize>},
      {"title", Title},
      {"trim", Trim},
      {"string", String},
      {"safe", String},
      {"replace", ReplaceFilter},
      {"indent", Indent},
      {"join", Join},
      {"tojson", ToJsonFilter},
      {"escape", Escape},
      {"e", Escape},
      {"forceescape", Escape},
      {"center", Center},
      {"truncate", Truncate},
      {"wordcount", WordCount},
      {"format", Format}};
  for (const auto& [known, filter] : kFilters) {
    if (known == name) return filter;
  }
  return nullptr;
}

}  // namespace sluice::engine::chat
