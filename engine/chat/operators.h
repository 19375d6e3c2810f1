#pragma once

#include <vector>

#include "absl/status/statusor.h"

#include "engine/chat/limits.h"
#include "engine/chat/syntax_tree.h"
#include "engine/chat/value.h"

namespace sluice::engine::chat {

// What is done with an undefined value that cannot be done: an error with its hint.
absl::Status UndefinedError(const Value& value);

// a op b of Python, for + - * / // % and **.
absl::StatusOr<Value> Compute(Operator op, const Value& a, const Value& b, Budget& budget);
// a op b for comparisons and `in`.
absl::StatusOr<bool> Compare(Operator op, const Value& a, const Value& b, Budget& budget);
// Less than zero, zero or more as a comes before b, is equal, or comes after.
absl::StatusOr<int> Order(const Value& a, const Value& b, Budget& budget);
absl::StatusOr<Value> Negate(const Value& value);

// container[key] with Python's rules; undefined when it is not there. `key` may be negative.
absl::StatusOr<Value> ItemOf(const Value& container, const Value& key);
// text[begin:end:step] or list[begin:end:step]; none leaves a bound out; an error for
// anything else.
absl::StatusOr<Value> SliceOf(const Value& container, const Value& begin, const Value& end,
                              const Value& step, Budget& budget);

// What `for` goes through: items, keys of a dict, characters. Uses generators up.
absl::StatusOr<std::vector<Value>> ItemsOf(const Value& value, Budget& budget);
// len(value).
absl::StatusOr<int64_t> LengthOf(const Value& value);

}  // namespace sluice::engine::chat
