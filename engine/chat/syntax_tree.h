#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/chat/value.h"

namespace sluice::engine::chat {

enum class Operator : uint8_t {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Block = std::vector<Statement>;

// A node of an expression. Immutable once parsed.
struct Expression {
  enum class Kind : uint8_t {
    kConstant,     // constant
    kName,         // name
    kList,         // parts
    kTuple,        // parts
    kDict,         // parts: key, value, key, value, ...
    kAttribute,    // parts[0].name
    kItem,         // parts[0][parts[1]]
    kSlice,        // parts[0][parts[1]:parts[2]:parts[3]], the last three may be null
    kCall,         // parts[0](parts[1:], named, spreads)
    kFilter,       // parts[0]|name(parts[1:], named, spreads); parts[0] is null in filter blocks
    kTest,         // parts[0] is name(parts[1:], named, spreads)
    kNegate,       // -parts[0]
    kPlus,         // +parts[0]
    kNot,          // not parts[0]
    kAnd,          // parts[0] and parts[1]
    kOr,           // parts[0] or parts[1]
    kArithmetic,   // parts[0] operators[0] parts[1]
    kCompare,      // parts[0] operators[0] parts[1] operators[1] parts[2] ...
    kConcat,       // parts[0] ~ parts[1] ~ ...
    kConditional,  // parts[0] if parts[1] else parts[2], the last may be null
  };
  Kind kind = Kind::kConstant;
  int line = 0;
  int depth = 1;  // of the tree below
  std::string name;
  Value constant;
  std::vector<ExpressionPtr> parts;
  std::vector<Operator> operators;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr spread;        // *args
  ExpressionPtr named_spread;  // **kwargs
};

// What `for` and `set` assign to.
struct Target {
  int line = 0;
  std::string name;       // of a variable or namespace; empty: unpack into `parts`
  std::string attribute;  // of the namespace `name`; empty: the variable itself
  std::vector<Target> parts;
};

// Of a macro or call block.
struct Parameter {
  std::string name;
  ExpressionPtr default_value;  // may be null
};

struct Statement {
  enum class Kind : uint8_t {
    kText,         // constant
    kOutput,       // value
    kIf,           // value, body, otherwise
    kFor,          // target, value, condition, body, otherwise
    kSet,          // target, value
    kSetBlock,     // target, body; value is a chain of filters or null
    kMacro,        // name, parameters, body
    kCallBlock,    // value (a call), parameters, body
    kFilterBlock,  // value (a chain of filters), body
    kWith,         // assignments, body
    kScope,        // body, in a scope of its own
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kText;
  int line = 0;
  std::string name;
  Value constant;
  Target target;
  ExpressionPtr value;
  ExpressionPtr condition;
  std::vector<Parameter> parameters;
  std::vector<std::pair<Target, ExpressionPtr>> assignments;
  Block body;
  Block otherwise;                // elif is an if in here
  bool takes_positional = false;  // a macro that speaks of `varargs`
  bool takes_named = false;       // ... of `kwargs`
  bool takes_caller = false;      // ... of `caller`
};

}  // namespace sluice::engine::chat
