#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "engine/tokenizer/marked_text.h"

namespace sluice::engine::chat {

inline constexpr MarkedText::Mark kContent = MarkedText::Mark::kContent;

class LoopState;
class Value;
struct Callable;
struct Dict;
struct Namespace;
struct Sequence;

// What a name, attribute or item stands for that is not there. Rendered as nothing; anything else
// done with it is the error in `hint`.
struct Undefined {
  std::shared_ptr<const std::string> hint;  // "'x' is undefined"
};
struct None {};

// A value of a template, as Python has them. Containers are shared and never change once a
// template can see them, except namespaces. Not thread-safe: belongs to one rendering, but for
// those without containers.
class Value {
 public:
  using TextPtr = std::shared_ptr<const MarkedText>;
  using SequencePtr = std::shared_ptr<Sequence>;  // a generator among them is used up by reading
  using DictPtr = std::shared_ptr<const Dict>;
  using LoopPtr = std::shared_ptr<LoopState>;
  using CallablePtr = std::shared_ptr<const Callable>;
  using Any = std::variant<Undefined, None, bool, int64_t, double, TextPtr, SequencePtr, DictPtr,
                           Namespace*, LoopPtr, CallablePtr>;

  Value() = default;  // undefined
  Value(None none) : any_(none) {}
  Value(bool value) : any_(value) {}
  Value(int64_t value) : any_(value) {}
  Value(double value) : any_(value) {}
  Value(MarkedText text) : any_(std::make_shared<const MarkedText>(std::move(text))) {}
  Value(SequencePtr sequence) : any_(std::move(sequence)) {}
  Value(DictPtr dict) : any_(std::move(dict)) {}
  Value(Namespace* space) : any_(space) {}
  Value(LoopPtr loop) : any_(std::move(loop)) {}
  Value(CallablePtr callable) : any_(std::move(callable)) {}
  Value(const char*) = delete;  // would be a bool

  static Value MakeUndefined(std::string hint) {
    Value value;
    value.any_ = Undefined{std::make_shared<const std::string>(std::move(hint))};
    return value;
  }
  // Text that a template's author did not write.
  static Value Content(std::string bytes) {
    return Value(MarkedText(std::move(bytes), MarkedText::Mark::kContent));
  }
  static Value Template(std::string bytes) {
    return Value(MarkedText(std::move(bytes), MarkedText::Mark::kTemplate));
  }
  static Value List(std::vector<Value> items);
  static Value Tuple(std::vector<Value> items);

  bool is_undefined() const { return std::holds_alternative<Undefined>(any_); }
  bool is_none() const { return std::holds_alternative<None>(any_); }
  bool is_bool() const { return std::holds_alternative<bool>(any_); }
  bool is_int() const { return std::holds_alternative<int64_t>(any_); }  // bool is another
  bool is_float() const { return std::holds_alternative<double>(any_); }
  bool is_number() const { return is_int() || is_float() || is_bool(); }
  bool is_text() const { return std::holds_alternative<TextPtr>(any_); }
  bool is_sequence() const { return std::holds_alternative<SequencePtr>(any_); }
  bool is_dict() const { return std::holds_alternative<DictPtr>(any_); }
  bool is_namespace() const { return std::holds_alternative<Namespace*>(any_); }
  bool is_loop() const { return std::holds_alternative<LoopPtr>(any_); }
  bool is_callable() const { return std::holds_alternative<CallablePtr>(any_); }

  // Only for values of that kind.
  const std::string* hint() const { return std::get<Undefined>(any_).hint.get(); }
  const MarkedText& text() const { return *std::get<TextPtr>(any_); }
  const std::string& bytes() const { return text().bytes(); }
  Sequence& sequence() const { return *std::get<SequencePtr>(any_); }
  const Dict& dict() const { return *std::get<DictPtr>(any_); }
  Namespace& name_space() const { return *std::get<Namespace*>(any_); }
  LoopState& loop() const { return *std::get<LoopPtr>(any_); }
  const LoopPtr& loop_ptr() const { return std::get<LoopPtr>(any_); }
  const Callable& callable() const { return *std::get<CallablePtr>(any_); }
  double as_float() const { return std::get<double>(any_); }

  // The value of an int, or of a bool, which Python counts as one.
  std::optional<int64_t> AsInt() const;
  // The value of any number.
  std::optional<double> AsDouble() const;
  // As Python's bool().
  bool IsTrue() const;
  // "str", "NoneType", ... as Python's messages have it.
  std::string_view TypeName() const;
  // How deep containers are nested in it: 0 for scalars.
  int depth() const;
  // The same object, not an equal one.
  bool IsSame(const Value& other) const;

 private:
  Any any_;
};

// Lists and what behaves much like them.
struct Sequence {
  enum class Kind : uint8_t { kList, kTuple, kRange, kGenerator, kKeys, kValues, kItems };
  Kind kind = Kind::kList;
  std::vector<Value> items;
  int depth = 1;
  size_t num_taken = 0;  // of a generator: items that were read already
  std::string text;      // of a range or generator: how it renders

  Sequence(Kind sequence_kind, std::vector<Value> sequence_items);
  bool has_length() const { return kind != Kind::kGenerator; }
  bool has_index() const {
    return kind == Kind::kList || kind == Kind::kTuple || kind == Kind::kRange;
  }
};

// Entries in the order in which their keys came first.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  int depth = 1;

  // Null when there is no such key.
  const Value* Find(const Value& key) const;
  const Value* Find(std::string_view key) const;
  // Replaces the value of an equal key. `key` is hashable.
  void Set(Value key, Value value);
  // Lists, dicts and the like cannot be keys.
  static bool IsHashable(const Value& key);

 private:
  size_t IndexOf(const std::string& canonical) const;  // entries.size(): none
  std::unordered_map<std::string, size_t> index_;      // by canonical key
};

// What `namespace()` makes. Owned by the rendering: a namespace may hold itself.
struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;

  const Value* Find(std::string_view name) const;
  void Set(std::string_view name, Value value);
};

// Equality as Python has it: 1 == 1.0 == True, lists item by item.
bool AreEqual(const Value& a, const Value& b);

}  // namespace sluice::engine::chat
