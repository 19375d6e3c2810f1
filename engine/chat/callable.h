#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/chat/value.h"

namespace sluice::engine::chat {

class Interpreter;
struct Scope;
struct Statement;

// What a call was given, evaluated.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// A function, method, filter or test of ours. `subject`: what a method belongs to, a filter or test
// is applied to; undefined for functions.
using Function = absl::StatusOr<Value> (*)(Interpreter& interpreter, const Value& subject,
                                           const Arguments& arguments);

// What a template can call. Immutable.
struct Callable {
  enum class Kind : uint8_t { kMacro, kFunction };
  Kind kind = Kind::kFunction;
  std::string name;
  const Statement* macro = nullptr;  // or call block
  std::weak_ptr<Scope> scope;        // where the macro was defined
  Function function = nullptr;
  Value receiver;  // of a method
};

}  // namespace sluice::engine::chat
