#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/chat/arguments.h"
#include "engine/chat/filter_table.h"
#include "engine/chat/interpreter.h"
#include "engine/chat/text_operations.h"
#include "engine/chat/unicode.h"

namespace sluice::engine::chat {
namespace {

Value MakeGenerator(std::string_view name, std::vector<Value> items) {
  auto sequence = std::make_shared<Sequence>(Sequence::Kind::kGenerator, std::move(items));
  sequence->text = "<generator object " + std::string(name) + ">";
  return Value(std::move(sequence));
}

// The key by which items are sorted, compared or told apart.
class KeyOf {
 public:
  // `attribute` may be null.
  KeyOf(Interpreter& interpreter, const Value* attribute, bool case_sensitive)
      : interpreter_(interpreter), attribute_(attribute), case_sensitive_(case_sensitive) {}

  absl::StatusOr<Value> operator()(const Value& item) const {
    Value key = item;
    if (attribute_ != nullptr && !attribute_->is_none()) {
      ASSIGN_OR_RETURN(key, AttributePath(interpreter_, item, *attribute_, nullptr));
    }
    if (case_sensitive_ || !key.is_text()) return key;
    return Value(ChangeCase(key.text(), Case::kLower));
  }

 private:
  Interpreter& interpreter_;
  const Value* attribute_;
  const bool case_sensitive_;
};

using Keyed = std::pair<Value, Value>;  // key, item

absl::StatusOr<std::vector<Keyed>> WithKeys(Interpreter& interpreter, std::vector<Value> items,
                                            const KeyOf& key_of) {
  RETURN_IF_ERROR(interpreter.budget().Items(items.size()));
  std::vector<Keyed> keyed;
  for (Value& item : items) {
    ASSIGN_OR_RETURN(Value key, key_of(item));
    keyed.emplace_back(std::move(key), std::move(item));
  }
  return keyed;
}

// Stable; an error in a comparison ends it.
absl::Status SortByKey(std::vector<Keyed>& keyed, bool reverse, Budget& budget) {
  absl::Status status;
  const auto before = [&](const Keyed& a, const Keyed& b) {
    if (!status.ok()) return false;
    const absl::StatusOr<int> order = Order(a.first, b.first, budget);
    if (!order.ok()) {
      status = order.status();
      return false;
    }
    return *order < 0;
  };
  if (reverse) std::reverse(keyed.begin(), keyed.end());
  // Merges, so that comparisons that contradict each other do no harm.
  std::stable_sort(keyed.begin(), keyed.end(), before);
  if (reverse) std::reverse(keyed.begin(), keyed.end());
  return status;
}

std::vector<Value> Unkeyed(std::vector<Keyed> keyed) {
  std::vector<Value> items;
  for (Keyed& entry : keyed) items.push_back(std::move(entry.second));
  return items;
}

absl::StatusOr<Value> Length(Interpreter& /*interpreter*/, const Value& subject,
                             const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("length", arguments, {}).status());
  ASSIGN_OR_RETURN(const int64_t length, LengthOf(subject));
  return Value(length);
}

absl::StatusOr<Value> Default(Interpreter& /*interpreter*/, const Value& subject,
                              const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("default", arguments, {"default_value", "boolean"}));
  const bool replaces = subject.is_undefined() || (bound.Bool(1, false) && !subject.IsTrue());
  if (!replaces) return subject;
  return bound.Has(0) ? bound[0] : Value::Template("");
}

absl::StatusOr<Value> First(Interpreter& interpreter, const Value& subject,
                            const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("first", arguments, {}).status());
  if (subject.is_sequence() && subject.sequence().kind == Sequence::Kind::kGenerator) {
    Sequence& generator = subject.sequence();
    if (generator.num_taken < generator.items.size()) return generator.items[generator.num_taken++];
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  if (!items.empty()) return items.front();
  return Value::MakeUndefined("No first item, sequence was empty.");
}

absl::Status CheckReversible(const Value& subject) {
  const bool is_generator =
      subject.is_sequence() && subject.sequence().kind == Sequence::Kind::kGenerator;
  if (!is_generator) return absl::OkStatus();
  return InvalidArgument("'generator' object is not reversible");
}

absl::StatusOr<Value> Last(Interpreter& interpreter, const Value& subject,
                           const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("last", arguments, {}).status());
  RETURN_IF_ERROR(CheckReversible(subject));
  ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  if (!items.empty()) return items.back();
  return Value::MakeUndefined("No last item, sequence was empty.");
}

absl::StatusOr<Value> List(Interpreter& interpreter, const Value& subject,
                           const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("list", arguments, {}).status());
  ASSIGN_OR_RETURN(std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  return Value::List(std::move(items));
}

absl::StatusOr<Value> Reverse(Interpreter& interpreter, const Value& subject,
                              const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("reverse", arguments, {}).status());
  ASSIGN_OR_RETURN(std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  std::reverse(items.begin(), items.end());
  if (!subject.is_text()) return MakeGenerator("reverse", std::move(items));
  MarkedText out;
  for (const Value& item : items) out.Append(item.text());
  return Value(std::move(out));
}

absl::StatusOr<Value> Items(Interpreter& interpreter, const Value& subject,
                            const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("items", arguments, {}).status());
  std::vector<Value> pairs;
  if (subject.is_undefined()) return MakeGenerator("items", std::move(pairs));
  if (!subject.is_dict()) return InvalidArgument("Can only get item pairs from a mapping.");
  RETURN_IF_ERROR(interpreter.budget().Items(3 * subject.dict().entries.size()));
  for (const auto& [key, value] : subject.dict().entries) {
    pairs.push_back(Value::Tuple({key, value}));
  }
  return MakeGenerator("items", std::move(pairs));
}

absl::StatusOr<Value> DictSort(Interpreter& interpreter, const Value& subject,
                               const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("dictsort", arguments,
                                                          {"case_sensitive", "by", "reverse"}));
  if (subject.is_undefined()) return UndefinedError(subject);
  if (!subject.is_dict()) return InvalidArgument("dictsort needs a mapping");
  std::string by = "key";
  if (bound.Has(1)) {
    ASSIGN_OR_RETURN(const MarkedText* text, bound.Text(1));
    by = text->bytes();
  }
  if (by != "key" && by != "value") {
    return InvalidArgument("You can only sort by either \"key\" or \"value\"");
  }
  const KeyOf key_of(interpreter, nullptr, bound.Bool(0, false));
  RETURN_IF_ERROR(interpreter.budget().Items(3 * subject.dict().entries.size()));
  std::vector<Keyed> keyed;
  for (const auto& [key, value] : subject.dict().entries) {
    ASSIGN_OR_RETURN(Value sort_key, key_of(by == "key" ? key : value));
    keyed.emplace_back(std::move(sort_key), Value::Tuple({key, value}));
  }
  RETURN_IF_ERROR(SortByKey(keyed, bound.Bool(2, false), interpreter.budget()));
  return Value::List(Unkeyed(std::move(keyed)));
}

// By one attribute or by several, "age,name".
absl::StatusOr<Value> Sort(Interpreter& interpreter, const Value& subject,
                           const Arguments& arguments) {
  ASSIGN_OR_RETURN(
      const auto bound,
      BoundArguments::Bind("sort", arguments, {"reverse", "case_sensitive", "attribute"}));
  ASSIGN_OR_RETURN(std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  std::vector<Value> attributes = {bound.Has(2) ? bound[2] : Value(None())};
  if (attributes[0].is_text()) {
    const MarkedText list = attributes[0].text();
    attributes.clear();
    for (MarkedText& part : Split(list, ",", kEverywhere, Side::kLeft)) {
      attributes.emplace_back(std::move(part));
    }
  }
  RETURN_IF_ERROR(interpreter.budget().Items(3 * items.size() * attributes.size()));
  std::vector<Keyed> keyed;
  for (Value& item : items) {
    // A list even of one: equal items then need no order, undefined ones among them.
    std::vector<Value> keys;
    for (const Value& attribute : attributes) {
      const KeyOf key_of(interpreter, &attribute, bound.Bool(1, false));
      ASSIGN_OR_RETURN(Value key, key_of(item));
      keys.push_back(std::move(key));
    }
    keyed.emplace_back(Value::List(std::move(keys)), std::move(item));
  }
  RETURN_IF_ERROR(SortByKey(keyed, bound.Bool(0, false), interpreter.budget()));
  return Value::List(Unkeyed(std::move(keyed)));
}

absl::StatusOr<Value> Unique(Interpreter& interpreter, const Value& subject,
                             const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("unique", arguments, {"case_sensitive", "attribute"}));
  ASSIGN_OR_RETURN(std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  const KeyOf key_of(interpreter, bound.Has(1) ? &bound[1] : nullptr, bound.Bool(0, false));
  ASSIGN_OR_RETURN(std::vector<Keyed> keyed, WithKeys(interpreter, std::move(items), key_of));
  Dict seen;
  std::vector<Value> out;
  for (auto& [key, item] : keyed) {
    if (!Dict::IsHashable(key)) {
      return InvalidArgument("unhashable type: '" + std::string(key.TypeName()) + "'");
    }
    if (seen.Find(key) != nullptr) continue;
    seen.Set(std::move(key), Value(true));
    out.push_back(std::move(item));
  }
  return MakeGenerator("unique", std::move(out));
}

template <bool kLargest>
absl::StatusOr<Value> Extreme(Interpreter& interpreter, const Value& subject,
                              const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("min", arguments, {"case_sensitive", "attribute"}));
  ASSIGN_OR_RETURN(std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  if (items.empty()) return Value::MakeUndefined("No aggregated item, sequence was empty.");
  const KeyOf key_of(interpreter, bound.Has(1) ? &bound[1] : nullptr, bound.Bool(0, false));
  ASSIGN_OR_RETURN(const std::vector<Keyed> keyed, WithKeys(interpreter, std::move(items), key_of));
  const Keyed* best = &keyed.front();
  for (const Keyed& entry : keyed) {
    if (&entry == best) continue;
    ASSIGN_OR_RETURN(const int order, Order(entry.first, best->first, interpreter.budget()));
    if (kLargest ? order > 0 : order < 0) best = &entry;
  }
  return best->second;
}

absl::StatusOr<Value> Sum(Interpreter& interpreter, const Value& subject,
                          const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("sum", arguments, {"attribute", "start"}));
  ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  Value total = bound.Has(1) ? bound[1] : Value(int64_t{0});
  if (total.is_text()) return InvalidArgument("sum() can't sum strings");
  for (const Value& item : items) {
    Value term = item;
    if (bound.Has(0) && !bound[0].is_none()) {
      ASSIGN_OR_RETURN(term, AttributePath(interpreter, item, bound[0], nullptr));
    }
    ASSIGN_OR_RETURN(total, Compute(Operator::kAdd, total, term, interpreter.budget()));
  }
  return total;
}

absl::StatusOr<Value> Batch(Interpreter& interpreter, const Value& subject,
                            const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("batch", arguments, {"linecount", "fill_with"}, 1));
  ASSIGN_OR_RETURN(const int64_t size, bound.Int(0, 1));
  ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  std::vector<Value> batches;
  std::vector<Value> batch;
  for (const Value& item : items) {
    if (static_cast<int64_t>(batch.size()) == size) {
      batches.push_back(Value::List(std::exchange(batch, {})));
    }
    batch.push_back(item);
  }
  if (!batch.empty()) {
    if (bound.Has(1) && !bound[1].is_none()) {
      RETURN_IF_ERROR(interpreter.budget().Items(static_cast<size_t>(std::max<int64_t>(0, size))));
      while (static_cast<int64_t>(batch.size()) < size) batch.push_back(bound[1]);
    }
    batches.push_back(Value::List(std::move(batch)));
  }
  return MakeGenerator("do_batch", std::move(batches));
}

absl::StatusOr<Value> Slice(Interpreter& interpreter, const Value& subject,
                            const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("slice", arguments, {"slices", "fill_with"}, 1));
  ASSIGN_OR_RETURN(const int64_t slices, bound.Int(0, 1));
  ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  if (slices == 0) return InvalidArgument("division by zero");
  std::vector<Value> out;
  RETURN_IF_ERROR(interpreter.budget().Items(static_cast<size_t>(std::max<int64_t>(0, slices))));
  const auto length = static_cast<int64_t>(items.size());
  const int64_t each = slices > 0 ? length / slices : 0, more = slices > 0 ? length % slices : 0;
  int64_t begin = 0;
  for (int64_t i = 0; i < slices; ++i) {
    const int64_t end = begin + each + (i < more ? 1 : 0);
    std::vector<Value> part(items.begin() + begin, items.begin() + end);
    if (bound.Has(1) && !bound[1].is_none() && i >= more) part.push_back(bound[1]);
    out.push_back(Value::List(std::move(part)));
    begin = end;
  }
  return MakeGenerator("do_slice", std::move(out));
}

absl::StatusOr<Value> Map(Interpreter& interpreter, const Value& subject,
                          const Arguments& arguments) {
  std::function<absl::StatusOr<Value>(const Value&)> apply;
  Arguments rest = arguments;
  if (arguments.positional.empty()) {
    ASSIGN_OR_RETURN(const auto bound,
                     BoundArguments::Bind("map", arguments, {"attribute", "default"}, 1));
    apply = [&interpreter, bound](const Value& item) {
      const bool has_default = bound.Has(1) && !bound[1].is_none();
      return AttributePath(interpreter, item, bound[0], has_default ? &bound[1] : nullptr);
    };
  } else {
    if (!arguments.positional[0].is_text())
      return InvalidArgument("map requires a filter argument");
    rest.positional.erase(rest.positional.begin());
    apply = [&interpreter, &arguments, &rest](const Value& item) {
      return interpreter.ApplyFilter(arguments.positional[0].bytes(), item, rest);
    };
  }
  std::vector<Value> out;
  if (!subject.IsTrue() && !subject.is_sequence()) return MakeGenerator("sync_do_map", {});
  ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value mapped, apply(item));
    out.push_back(std::move(mapped));
  }
  return MakeGenerator("sync_do_map", std::move(out));
}

// select, reject, selectattr and rejectattr.
template <bool kKeeps, bool kByAttribute>
absl::StatusOr<Value> Select(Interpreter& interpreter, const Value& subject,
                             const Arguments& arguments) {
  Arguments rest = arguments;
  Value attribute;
  if (kByAttribute) {
    if (rest.positional.empty()) return InvalidArgument("Missing parameter for attribute name");
    attribute = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
  }
  Value test;
  if (!rest.positional.empty()) {
    test = rest.positional.front();
    if (!test.is_text()) return InvalidArgument("the name of a test must be a str");
    rest.positional.erase(rest.positional.begin());
  }
  std::vector<Value> out;
  if (!subject.IsTrue() && !subject.is_sequence()) return MakeGenerator("select_or_reject", {});
  ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(subject, interpreter.budget()));
  for (const Value& item : items) {
    RETURN_IF_ERROR(interpreter.budget().Steps(1));
    Value tested = item;
    if (kByAttribute) {
      ASSIGN_OR_RETURN(tested, AttributePath(interpreter, item, attribute, nullptr));
    }
    bool passes = tested.IsTrue();
    if (test.is_text()) {
      ASSIGN_OR_RETURN(passes, interpreter.ApplyTest(test.bytes(), tested, rest));
    }
    if (passes == kKeeps) out.push_back(item);
  }
  return MakeGenerator("select_or_reject", std::move(out));
}

absl::StatusOr<Value> Attr(Interpreter& interpreter, const Value& subject,
                           const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("attr", arguments, {"name"}, 1));
  ASSIGN_OR_RETURN(const MarkedText* name, bound.Text(0));
  // Unlike `.name` it never looks into entries.
  if (subject.is_dict() && FindMethod(subject, name->bytes()) == nullptr) {
    return Value::MakeUndefined("'dict object' has no attribute '" + name->bytes().substr(0, 64) +
                                "'");
  }
  return interpreter.AttributeOf(subject, name->bytes());
}

}  // namespace

absl::StatusOr<Value> AttributePath(Interpreter& interpreter, const Value& item, const Value& path,
                                    const Value* otherwise) {
  std::vector<Value> parts = {path};
  if (path.is_text()) {
    parts.clear();
    for (MarkedText& part : Split(path.text(), ".", kEverywhere, Side::kLeft)) {
      const std::string& bytes = part.bytes();
      const bool is_index =
          !bytes.empty() && bytes.size() < 18 &&
          std::all_of(bytes.begin(), bytes.end(), [](char c) { return c >= '0' && c <= '9'; });
      parts.push_back(is_index ? Value(int64_t{std::stoll(bytes)}) : Value(std::move(part)));
    }
  }
  Value value = item;
  for (const Value& part : parts) {
    ASSIGN_OR_RETURN(value, interpreter.ItemOrAttribute(value, part));
    if (value.is_undefined() && otherwise != nullptr) value = *otherwise;
  }
  return value;
}

Function FindSequenceFilter(std::string_view name) {
  static constexpr std::pair<std::string_view, Function> kFilters[] = {
      {"length", Length},
      {"count", Length},
      {"default", Default},
      {"d", Default},
      {"first", First},
      {"last", Last},
      {"list", List},
      {"reverse", Reverse},
      {"items", Items},
      {"dictsort", DictSort},
      {"sort", Sort},
      {"unique", Unique},
      {"min", Extreme<false>},
      {"max", Extreme<true>},
      {"sum", Sum},
      {"batch", Batch},
      {"slice", Slice},
      {"map", Map},
      {"select", Select<true, false>},
      {"reject", Select<false, false>},
      {"selectattr", Select<true, true>},
      {"rejectattr", Select<false, true>},
      {"attr", Attr}};
  for (const auto& [known, filter] : kFilters) {
    if (known == name) return filter;
  }
  return nullptr;
}

}  // namespace sluice::engine::chat
