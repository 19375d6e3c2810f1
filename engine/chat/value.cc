#include "engine/chat/value.h"

#include <algorithm>
#include <cmath>

#include "engine/chat/callable.h"
#include "engine/chat/loop_state.h"

namespace sluice::engine::chat {
namespace {

int DeepestOf(const std::vector<Value>& items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  return depth;
}

// Equal for equal keys, different for others.
std::string Canonical(const Value& key) {
  if (key.is_text()) return "s" + key.bytes();
  if (const auto number = key.AsInt()) return "i" + std::to_string(*number);
  if (key.is_float()) {
    const double value = key.as_float();
    if (std::abs(value) < 9e18 && value == std::floor(value)) {
      return "i" + std::to_string(static_cast<int64_t>(value));
    }
    return "f" + std::to_string(std::hash<double>()(value)) + "/" + std::to_string(value);
  }
  if (key.is_none()) return "n";
  std::string text = "t";
  for (const Value& item : key.sequence().items) {
    const std::string part = Canonical(item);
    text += std::to_string(part.size()) + ":" + part;
  }
  return text;
}

bool AreEqualSequences(const Sequence& a, const Sequence& b) {
  if (a.kind != b.kind || a.kind == Sequence::Kind::kGenerator) return &a == &b;
  return a.items.size() == b.items.size() &&
         std::equal(a.items.begin(), a.items.end(), b.items.begin(), AreEqual);
}

bool AreEqualDicts(const Dict& a, const Dict& b) {
  if (a.entries.size() != b.entries.size()) return false;
  return std::all_of(a.entries.begin(), a.entries.end(), [&b](const auto& entry) {
    const Value* other = b.Find(entry.first);
    return other != nullptr && AreEqual(entry.second, *other);
  });
}

std::string_view SequenceTypeName(Sequence::Kind kind) {
  switch (kind) {
    case Sequence::Kind::kList:
      return "list";
    case Sequence::Kind::kTuple:
      return "tuple";
    case Sequence::Kind::kRange:
      return "range";
    case Sequence::Kind::kGenerator:
      return "generator";
    case Sequence::Kind::kKeys:
      return "dict_keys";
    case Sequence::Kind::kValues:
      return "dict_values";
    case Sequence::Kind::kItems:
      return "dict_items";
  }
  return "list";
}

}  // namespace

Sequence::Sequence(Kind sequence_kind, std::vector<Value> sequence_items)
    : kind(sequence_kind), items(std::move(sequence_items)), depth(1 + DeepestOf(items)) {}

Value Value::List(std::vector<Value> items) {
  return Value(std::make_shared<Sequence>(Sequence::Kind::kList, std::move(items)));
}

Value Value::Tuple(std::vector<Value> items) {
  return Value(std::make_shared<Sequence>(Sequence::Kind::kTuple, std::move(items)));
}

std::optional<int64_t> Value::AsInt() const {
  if (const auto* value = std::get_if<int64_t>(&any_)) return *value;
  if (const auto* value = std::get_if<bool>(&any_)) return *value ? 1 : 0;
  return std::nullopt;
}

std::optional<double> Value::AsDouble() const {
  if (is_float()) return as_float();
  if (const auto value = AsInt()) return static_cast<double>(*value);
  return std::nullopt;
}

bool Value::IsTrue() const {
  if (is_undefined() || is_none()) return false;
  if (const auto number = AsInt()) return *number != 0;
  if (is_float()) return as_float() != 0;
  if (is_text()) return !text().empty();
  if (is_sequence()) return !sequence().has_length() || !sequence().items.empty();
  if (is_dict()) return !dict().entries.empty();
  return true;
}

std::string_view Value::TypeName() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_text()) return "str";
  if (is_sequence()) return SequenceTypeName(sequence().kind);
  if (is_dict()) return "dict";
  if (is_namespace()) return "Namespace";
  if (is_loop()) return "LoopContext";
  return callable().kind == Callable::Kind::kMacro ? "Macro" : "function";
}

int Value::depth() const {
  if (is_sequence()) return sequence().depth;
  if (is_dict()) return dict().depth;
  if (is_callable()) return callable().receiver.depth() + 1;
  return 0;
}

bool Value::IsSame(const Value& other) const {
  if (any_.index() != other.any_.index()) return false;
  if (is_sequence()) return &sequence() == &other.sequence();
  if (is_dict()) return &dict() == &other.dict();
  if (is_namespace()) return &name_space() == &other.name_space();
  if (is_loop()) return &loop() == &other.loop();
  if (is_callable()) return &callable() == &other.callable();
  if (is_float()) return as_float() == other.as_float();
  return AreEqual(*this, other);
}

size_t Dict::IndexOf(const std::string& canonical) const {
  const auto found = index_.find(canonical);
  return found == index_.end() ? entries.size() : found->second;
}

const Value* Dict::Find(const Value& key) const {
  if (!IsHashable(key)) return nullptr;
  const size_t index = IndexOf(Canonical(key));
  return index == entries.size() ? nullptr : &entries[index].second;
}

const Value* Dict::Find(std::string_view key) const {
  std::string canonical = "s";
  canonical += key;
  const size_t index = IndexOf(canonical);
  return index == entries.size() ? nullptr : &entries[index].second;
}

void Dict::Set(Value key, Value value) {
  depth = std::max({depth, 1 + key.depth(), 1 + value.depth()});
  const auto [place, is_new] = index_.try_emplace(Canonical(key), entries.size());
  if (is_new) {
    entries.emplace_back(std::move(key), std::move(value));
  } else {
    entries[place->second].second = std::move(value);
  }
}

bool Dict::IsHashable(const Value& key) {
  if (key.is_text() || key.is_number() || key.is_none()) return true;
  if (!key.is_sequence() || key.sequence().kind != Sequence::Kind::kTuple) return false;
  const std::vector<Value>& items = key.sequence().items;
  return std::all_of(items.begin(), items.end(), IsHashable);
}

const Value* Namespace::Find(std::string_view name) const {
  for (const auto& [key, value] : attributes) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Namespace::Set(std::string_view name, Value value) {
  for (auto& [key, old] : attributes) {
    if (key != name) continue;
    old = std::move(value);
    return;
  }
  attributes.emplace_back(name, std::move(value));
}

bool AreEqual(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    const auto left = a.AsInt(), right = b.AsInt();
    if (left && right) return *left == *right;
    return *a.AsDouble() == *b.AsDouble();
  }
  if (a.is_undefined() || a.is_none()) {
    return a.is_undefined() ? b.is_undefined() : b.is_none();
  }
  if (a.is_text()) return b.is_text() && a.bytes() == b.bytes();
  if (a.is_sequence()) return b.is_sequence() && AreEqualSequences(a.sequence(), b.sequence());
  if (a.is_dict()) return b.is_dict() && AreEqualDicts(a.dict(), b.dict());
  return a.IsSame(b);
}

}  // namespace sluice::engine::chat
