#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/chat/arguments.h"
#include "engine/chat/filter_table.h"
#include "engine/chat/interpreter.h"
#include "engine/chat/text_format.h"
#include "engine/chat/text_operations.h"
#include "engine/chat/unicode.h"
#include "engine/chat/value_text.h"

// Methods of Python's str.
namespace sluice::engine::chat {
namespace {

using Result = absl::StatusOr<Value>;

Value ListOf(std::vector<MarkedText> parts) {
  std::vector<Value> items;
  for (MarkedText& part : parts) items.emplace_back(std::move(part));
  return Value::List(std::move(items));
}

template <Side kSide>
Result StripMethod(Interpreter& /*interpreter*/, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("strip", arguments, {"chars"}));
  ASSIGN_OR_RETURN(const MarkedText* characters, bound.OptionalText(0));
  if (characters == nullptr) return Value(Strip(self.text(), std::nullopt, kSide));
  return Value(Strip(self.text(), characters->bytes(), kSide));
}

template <Side kSide>
Result SplitMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("split", arguments, {"sep", "maxsplit"}));
  ASSIGN_OR_RETURN(const MarkedText* separator, bound.OptionalText(0));
  ASSIGN_OR_RETURN(int64_t most, bound.Int(1, -1));
  if (most < 0) most = kEverywhere;
  std::vector<MarkedText> parts;
  if (separator == nullptr) {
    parts = SplitAtSpace(self.text(), most, kSide);
  } else {
    if (separator->empty()) return InvalidArgument("empty separator");
    parts = Split(self.text(), separator->bytes(), most, kSide);
  }
  RETURN_IF_ERROR(interpreter.budget().Items(3 * parts.size()));
  return ListOf(std::move(parts));
}

Result SplitLinesMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("splitlines", arguments, {"keepends"}));
  std::vector<MarkedText> lines = SplitLines(self.text(), bound.Bool(0, false));
  RETURN_IF_ERROR(interpreter.budget().Items(3 * lines.size()));
  return ListOf(std::move(lines));
}

// startswith and endswith: a str or a tuple of them, and optionally where to begin and end.
template <bool kAtStart>
Result AffixMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const char* const name = kAtStart ? "startswith" : "endswith";
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind(name, arguments, {"affix", "start", "end"}, 1));
  Value text = self;
  if (bound.Has(1) || bound.Has(2)) {
    const Value none{None()};
    ASSIGN_OR_RETURN(text, SliceOf(self, bound.Has(1) ? bound[1] : none,
                                   bound.Has(2) ? bound[2] : none, none, interpreter.budget()));
  }
  std::vector<Value> affixes = {bound[0]};
  if (bound[0].is_sequence() && bound[0].sequence().kind == Sequence::Kind::kTuple) {
    affixes = bound[0].sequence().items;
  }
  for (const Value& affix : affixes) {
    if (!affix.is_text()) {
      return InvalidArgument(std::string(name) + " first arg must be str or a tuple of str, not " +
                             std::string(affix.TypeName()));
    }
    const bool has =
        kAtStart ? text.bytes().starts_with(affix.bytes()) : text.bytes().ends_with(affix.bytes());
    if (has) return Value(true);
  }
  return Value(false);
}

template <bool kAtStart>
Result RemoveAffix(Interpreter& /*interpreter*/, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("removeprefix", arguments, {"affix"}, 1));
  ASSIGN_OR_RETURN(const MarkedText* affix, bound.Text(0));
  const MarkedText& text = self.text();
  if (kAtStart && text.bytes().starts_with(affix->bytes())) {
    return Value(text.Substr(affix->size(), text.size() - affix->size()));
  }
  if (!kAtStart && text.bytes().ends_with(affix->bytes())) {
    return Value(text.Substr(0, text.size() - affix->size()));
  }
  return self;
}

Result ReplaceMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("replace", arguments, {"old", "new", "count"}, 2));
  ASSIGN_OR_RETURN(const MarkedText* old, bound.Text(0));
  ASSIGN_OR_RETURN(const MarkedText* replacement, bound.Text(1));
  ASSIGN_OR_RETURN(const int64_t count, bound.Int(2, -1));
  ASSIGN_OR_RETURN(MarkedText out,
                   ReplaceWithin(self.text(), old->bytes(), *replacement,
                                 count < 0 ? kEverywhere : count, interpreter.budget()));
  return Value(std::move(out));
}

template <Case kCase>
Result CaseMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("str method", arguments, {}).status());
  RETURN_IF_ERROR(interpreter.budget().Text(self.text().size()));
  return Value(ChangeCase(self.text(), kCase));
}

// find, rfind, index and rindex, within [start, end).
template <bool kFirst, bool kMustBeThere>
Result FindMethodOf(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("find", arguments, {"sub", "start", "end"}, 1));
  ASSIGN_OR_RETURN(const MarkedText* wanted, bound.Text(0));
  const Value none{None()};
  ASSIGN_OR_RETURN(const Value part,
                   SliceOf(self, bound.Has(1) ? bound[1] : none, bound.Has(2) ? bound[2] : none,
                           none, interpreter.budget()));
  const auto length = static_cast<int64_t>(CountCodePoints(self.bytes()));
  ASSIGN_OR_RETURN(int64_t start, bound.Int(1, 0));
  if (start < 0) start = std::max<int64_t>(0, start + length);
  size_t at =
      kFirst ? Find(part.bytes(), wanted->bytes(), 0) : FindLast(part.bytes(), wanted->bytes());
  if (start > length) at = std::string_view::npos;
  if (at != std::string_view::npos) {
    return Value(start + static_cast<int64_t>(CountCodePoints(part.bytes().substr(0, at))));
  }
  if (kMustBeThere) return InvalidArgument("substring not found");
  return Value(int64_t{-1});
}

Result CountMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("count", arguments, {"sub", "start", "end"}, 1));
  ASSIGN_OR_RETURN(const MarkedText* wanted, bound.Text(0));
  const Value none{None()};
  ASSIGN_OR_RETURN(const Value part,
                   SliceOf(self, bound.Has(1) ? bound[1] : none, bound.Has(2) ? bound[2] : none,
                           none, interpreter.budget()));
  if (wanted->empty()) return Value(static_cast<int64_t>(CountCodePoints(part.bytes()) + 1));
  int64_t count = 0;
  for (size_t at = Find(part.bytes(), wanted->bytes(), 0); at != std::string_view::npos;
       at = Find(part.bytes(), wanted->bytes(), at + wanted->size())) {
    ++count;
  }
  return Value(count);
}

Result JoinMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("join", arguments, {"iterable"}, 1));
  ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(bound[0], interpreter.budget()));
  MarkedText out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is_text()) {
      return InvalidArgument("sequence item " + std::to_string(i) + ": expected str instance, " +
                             std::string(items[i].TypeName()) + " found");
    }
    const size_t size = out.size() + items[i].text().size() + (i > 0 ? self.text().size() : 0);
    RETURN_IF_ERROR(interpreter.budget().Grow(out.size(), size));
    if (i > 0) out.Append(self.text());
    out.Append(items[i].text());
  }
  return Value(std::move(out));
}

// isdigit and the like: all code points, of which there is one.
template <bool (*kIs)(char32_t)>
Result AllMethod(Interpreter& /*interpreter*/, const Value& self, const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("str method", arguments, {}).status());
  const std::vector<char32_t> points = CodePoints(self.bytes()).values;
  return Value(!points.empty() && std::all_of(points.begin(), points.end(), kIs));
}

bool IsAlphanumeric(char32_t c) { return IsAlpha(c) || IsNumeric(c); }

Result IsCaseMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments,
                    std::string_view test) {
  RETURN_IF_ERROR(BoundArguments::Bind("str method", arguments, {}).status());
  ASSIGN_OR_RETURN(const bool is, interpreter.ApplyTest(test, self, {}));
  return Value(is);
}
Result IsLowerMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  return IsCaseMethod(interpreter, self, arguments, "lower");
}
Result IsUpperMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  return IsCaseMethod(interpreter, self, arguments, "upper");
}

template <Side kSide>
Result PadMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("pad", arguments, {"width", "fill"}, 1));
  ASSIGN_OR_RETURN(const int64_t width, bound.Int(0, 0));
  ASSIGN_OR_RETURN(const MarkedText* fill, bound.OptionalText(1));
  if (fill != nullptr && CountCodePoints(fill->bytes()) != 1) {
    return InvalidArgument("the fill character must be exactly one character long");
  }
  const std::string fill_bytes = fill == nullptr ? " " : fill->bytes();
  const int64_t most = std::min<int64_t>(std::max<int64_t>(0, width), int64_t{1} << 40);
  RETURN_IF_ERROR(interpreter.budget().Text(self.text().size() +
                                            static_cast<size_t>(most) * fill_bytes.size()));
  return Value(Pad(self.text(), width, fill_bytes, kSide));
}

Result ZeroFill(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("zfill", arguments, {"width"}, 1));
  ASSIGN_OR_RETURN(const int64_t width, bound.Int(0, 0));
  RETURN_IF_ERROR(interpreter.budget().Text(static_cast<size_t>(std::max<int64_t>(0, width))));
  const std::string& bytes = self.bytes();
  const size_t sign = !bytes.empty() && (bytes[0] == '-' || bytes[0] == '+') ? 1 : 0;
  MarkedText out = self.text().Substr(0, sign);
  out.Append(Pad(self.text().Substr(sign, bytes.size() - sign), width - static_cast<int64_t>(sign),
                 "0", Side::kLeft));
  return Value(std::move(out));
}

template <bool kFirst>
Result PartitionMethod(Interpreter& /*interpreter*/, const Value& self,
                       const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("partition", arguments, {"sep"}, 1));
  ASSIGN_OR_RETURN(const MarkedText* separator, bound.Text(0));
  if (separator->empty()) return InvalidArgument("empty separator");
  const MarkedText& text = self.text();
  const size_t at = kFirst ? Find(text.bytes(), separator->bytes(), 0)
                           : FindLast(text.bytes(), separator->bytes());
  const Value empty{MarkedText()};
  if (at == std::string_view::npos) {
    return kFirst ? Value::Tuple({self, empty, empty}) : Value::Tuple({empty, empty, self});
  }
  const size_t after = at + separator->size();
  return Value::Tuple(
      {Value(text.Substr(0, at)), bound[0], Value(text.Substr(after, text.size() - after))});
}

Result FormatMethod(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(MarkedText out, FormatBraces(self.text(), arguments, interpreter));
  return Value(std::move(out));
}

}  // namespace

Function FindTextMethod(std::string_view name) {
  static constexpr std::pair<std::string_view, Function> kMethods[] = {
      {"strip", StripMethod<Side::kBoth>},
      {"lstrip", StripMethod<Side::kLeft>},
      {"rstrip", StripMethod<Side::kRight>},
      {"split", SplitMethod<Side::kLeft>},
      {"rsplit", SplitMethod<Side::kRight>},
      {"splitlines", SplitLinesMethod},
      {"startswith", AffixMethod<true>},
      {"endswith", AffixMethod<false>},
      {"removeprefix", RemoveAffix<true>},
      {"removesuffix", RemoveAffix<false>},
      {"replace", ReplaceMethod},
      {"upper", CaseMethod<Case::kUpper>},
      {"lower", CaseMethod<Case::kLower>},
      {"title", CaseMethod<Case::kTitle>},
      {"capitalize", CaseMethod<Case::kCapitalize>},
      {"swapcase", CaseMethod<Case::kSwap>},
      {"find", FindMethodOf<true, false>},
      {"rfind", FindMethodOf<false, false>},
      {"index", FindMethodOf<true, true>},
      {"rindex", FindMethodOf<false, true>},
      {"count", CountMethod},
      {"join", JoinMethod},
      {"isdigit", AllMethod<IsDigit>},
      {"isdecimal", AllMethod<IsDecimal>},
      {"isnumeric", AllMethod<IsNumeric>},
      {"isalpha", AllMethod<IsAlpha>},
      {"isalnum", AllMethod<IsAlphanumeric>},
      {"isspace", AllMethod<IsSpace>},
      {"islower", IsLowerMethod},
      {"isupper", IsUpperMethod},
      {"ljust", PadMethod<Side::kRight>},
      {"rjust", PadMethod<Side::kLeft>},
      {"center", PadMethod<Side::kBoth>},
      {"zfill", ZeroFill},
      {"partition", PartitionMethod<true>},
      {"rpartition", PartitionMethod<false>},
      {"format", FormatMethod}};
  for (const auto& [known, method] : kMethods) {
    if (known == name) return method;
  }
  return nullptr;
}

}  // namespace sluice::engine::chat
