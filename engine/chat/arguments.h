#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/status.h"
#include "engine/chat/callable.h"
#include "engine/chat/operators.h"

namespace sluice::engine::chat {

// The arguments of a call of one of our functions, by parameter.
class BoundArguments {
 public:
  // INVALID_ARGUMENT when there are more than `names`, unknown ones, one twice, or fewer than
  // `num_required`.
  static absl::StatusOr<BoundArguments> Bind(std::string_view function, const Arguments& arguments,
                                             std::initializer_list<std::string_view> names,
                                             size_t num_required = 0);

  bool Has(size_t index) const { return values_[index].has_value(); }
  // Of a parameter that was given.
  const Value& operator[](size_t index) const { return *values_[index]; }
  // Not given and none are `otherwise`.
  absl::StatusOr<int64_t> Int(size_t index, int64_t otherwise) const;
  // As Python takes any value for true or false.
  bool Bool(size_t index, bool otherwise) const {
    return Has(index) ? values_[index]->IsTrue() : otherwise;
  }
  // A str and nothing else.
  absl::StatusOr<const MarkedText*> Text(size_t index) const;
  // The same where it may be left out, or be none: null.
  absl::StatusOr<const MarkedText*> OptionalText(size_t index) const;

 private:
  std::vector<std::optional<Value>> values_;
};

inline absl::StatusOr<BoundArguments> BoundArguments::Bind(
    std::string_view function, const Arguments& arguments,
    std::initializer_list<std::string_view> names, size_t num_required) {
  const auto error = [&](const std::string& what) {
    return InvalidArgument(std::string(function) + "() " + what);
  };
  if (arguments.positional.size() > names.size()) {
    return error("takes at most " + std::to_string(names.size()) + " arguments, got " +
                 std::to_string(arguments.positional.size()));
  }
  BoundArguments bound;
  bound.values_.assign(arguments.positional.begin(), arguments.positional.end());
  bound.values_.resize(names.size());
  for (const auto& [name, value] : arguments.named) {
    size_t index = 0;
    while (index < names.size() && names.begin()[index] != name) ++index;
    if (index == names.size()) {
      return error("got an unexpected keyword argument '" + name.substr(0, 64) + "'");
    }
    if (bound.values_[index]) return error("got two values for '" + name + "'");
    bound.values_[index] = value;
  }
  for (size_t i = 0; i < num_required; ++i) {
    if (!bound.values_[i]) return error("lacks '" + std::string(names.begin()[i]) + "'");
  }
  return bound;
}

inline absl::StatusOr<int64_t> BoundArguments::Int(size_t index, int64_t otherwise) const {
  if (!Has(index) || values_[index]->is_none()) return otherwise;
  if (values_[index]->is_undefined()) return UndefinedError(*values_[index]);
  if (const auto number = values_[index]->AsInt()) return *number;
  return InvalidArgument("'" + std::string(values_[index]->TypeName()) +
                         "' object cannot be interpreted as an integer");
}

inline absl::StatusOr<const MarkedText*> BoundArguments::Text(size_t index) const {
  const Value& value = *values_[index];
  if (value.is_text()) return &value.text();
  return InvalidArgument("expected a str, not " + std::string(value.TypeName()));
}

inline absl::StatusOr<const MarkedText*> BoundArguments::OptionalText(size_t index) const {
  if (!Has(index) || values_[index]->is_none()) return nullptr;
  return Text(index);
}

}  // namespace sluice::engine::chat
