#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/chat/filter_table.h"
#include "engine/chat/interpreter.h"
#include "engine/chat/interpreter_level.h"
#include "engine/chat/operators.h"
#include "engine/chat/value_text.h"

// What expressions come to.
namespace sluice::engine::chat {
namespace {

Value MakeFunction(std::string_view name, Function function, Value receiver) {
  auto callable = std::make_shared<Callable>();
  callable->name = name;
  callable->function = function;
  callable->receiver = std::move(receiver);
  return Value(Value::CallablePtr(std::move(callable)));
}

std::string Attributeless(const Value& value, std::string_view name) {
  return "'" + std::string(value.TypeName()) + " object' has no attribute '" +
         std::string(name.substr(0, 64)) + "'";
}

}  // namespace

absl::StatusOr<Value> Interpreter::Evaluate(const Expression& expression) {
  const Level level(*this);
  line_ = expression.line;
  RETURN_IF_ERROR(level.Check());
  absl::StatusOr<Value> value = EvaluateKind(expression);
  if (value.ok() && value->depth() > budget_.limits().max_value_depth) {
    return ResourceExhausted("lists are nested deeper than " +
                             std::to_string(budget_.limits().max_value_depth));
  }
  return value;
}

absl::StatusOr<Value> Interpreter::EvaluateKind(const Expression& expression) {
  using Kind = Expression::Kind;
  switch (expression.kind) {
    case Kind::kConstant:
      return expression.constant;
    case Kind::kName:
      return EvaluateName(expression);
    case Kind::kList:
    case Kind::kTuple: {
      ASSIGN_OR_RETURN(std::vector<Value> items, EvaluateAll(expression.parts, 0));
      RETURN_IF_ERROR(budget_.Items(items.size()));
      return expression.kind == Kind::kList ? Value::List(std::move(items))
                                            : Value::Tuple(std::move(items));
    }
    case Kind::kDict:
      return EvaluateDict(expression);
    case Kind::kAttribute: {
      ASSIGN_OR_RETURN(const Value object, Evaluate(*expression.parts[0]));
      line_ = expression.line;
      return AttributeOf(object, expression.name);
    }
    case Kind::kItem: {
      ASSIGN_OR_RETURN(const Value object, Evaluate(*expression.parts[0]));
      ASSIGN_OR_RETURN(const Value key, Evaluate(*expression.parts[1]));
      return ItemOrAttribute(object, key);
    }
    case Kind::kSlice:
      return EvaluateSlice(expression);
    case Kind::kCall:
      return EvaluateCall(expression);
    case Kind::kFilter:
      return EvaluateFilter(expression, nullptr);
    case Kind::kTest: {
      ASSIGN_OR_RETURN(const Value subject, Evaluate(*expression.parts[0]));
      ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expression));
      line_ = expression.line;
      ASSIGN_OR_RETURN(const bool passes, ApplyTest(expression.name, subject, arguments));
      return Value(passes);
    }
    case Kind::kNegate:
    case Kind::kPlus: {
      ASSIGN_OR_RETURN(const Value operand, Evaluate(*expression.parts[0]));
      if (expression.kind == Kind::kNegate) return Negate(operand);
      if (operand.is_undefined()) return UndefinedError(operand);
      if (const auto number = operand.AsInt()) return Value(*number);
      if (operand.is_float()) return operand;
      return InvalidArgument("bad operand type for unary +: '" + std::string(operand.TypeName()) +
                             "'");
    }
    case Kind::kNot:
    case Kind::kAnd:
    case Kind::kOr:
      return EvaluateLogic(expression);
    case Kind::kArithmetic: {
      ASSIGN_OR_RETURN(const Value left, Evaluate(*expression.parts[0]));
      ASSIGN_OR_RETURN(const Value right, Evaluate(*expression.parts[1]));
      line_ = expression.line;
      return Compute(expression.operators[0], left, right, budget_);
    }
    case Kind::kCompare:
      return EvaluateCompare(expression);
    case Kind::kConcat:
      return EvaluateConcat(expression);
    case Kind::kConditional:
      return EvaluateConditional(expression);
  }
  return Value();
}

absl::StatusOr<std::vector<Value>> Interpreter::EvaluateAll(const std::vector<ExpressionPtr>& parts,
                                                            size_t from) {
  std::vector<Value> values;
  for (size_t i = from; i < parts.size(); ++i) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*parts[i]));
    values.push_back(std::move(value));
  }
  return values;
}

absl::StatusOr<Value> Interpreter::EvaluateName(const Expression& expression) {
  if (const Value* value = scope_->Find(expression.name)) return *value;
  if (const Function function = FindFunction(expression.name)) {
    return MakeFunction(expression.name, function, Value());
  }
  return Value::MakeUndefined("'" + expression.name.substr(0, 64) + "' is undefined");
}

absl::StatusOr<Value> Interpreter::EvaluateDict(const Expression& expression) {
  auto dict = std::make_shared<Dict>();
  RETURN_IF_ERROR(budget_.Items(2 * expression.parts.size()));
  for (size_t i = 0; i < expression.parts.size(); i += 2) {
    ASSIGN_OR_RETURN(Value key, Evaluate(*expression.parts[i]));
    ASSIGN_OR_RETURN(Value value, Evaluate(*expression.parts[i + 1]));
    if (!Dict::IsHashable(key)) {
      return InvalidArgument("unhashable type: '" + std::string(key.TypeName()) + "'");
    }
    dict->Set(std::move(key), std::move(value));
  }
  return Value(Value::DictPtr(std::move(dict)));
}

absl::StatusOr<Value> Interpreter::EvaluateSlice(const Expression& expression) {
  ASSIGN_OR_RETURN(const Value object, Evaluate(*expression.parts[0]));
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    const ExpressionPtr& bound = expression.parts[i + 1];
    bounds[i] = Value(None());
    if (!bound) continue;
    ASSIGN_OR_RETURN(bounds[i], Evaluate(*bound));
  }
  line_ = expression.line;
  return SliceOf(object, bounds[0], bounds[1], bounds[2], budget_);
}

absl::StatusOr<Value> Interpreter::EvaluateCall(const Expression& expression) {
  ASSIGN_OR_RETURN(const Value callee, Evaluate(*expression.parts[0]));
  ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expression));
  line_ = expression.line;
  return Call(callee, arguments);
}

absl::StatusOr<Arguments> Interpreter::EvaluateArguments(const Expression& expression) {
  Arguments arguments;
  ASSIGN_OR_RETURN(arguments.positional, EvaluateAll(expression.parts, 1));
  for (const auto& [name, part] : expression.named) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*part));
    arguments.named.emplace_back(name, std::move(value));
  }
  if (expression.spread) {
    ASSIGN_OR_RETURN(const Value spread, Evaluate(*expression.spread));
    ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(spread, budget_));
    arguments.positional.insert(arguments.positional.end(), items.begin(), items.end());
  }
  if (expression.named_spread) {
    ASSIGN_OR_RETURN(const Value spread, Evaluate(*expression.named_spread));
    if (!spread.is_dict()) return InvalidArgument("argument after ** must be a mapping");
    for (const auto& [key, value] : spread.dict().entries) {
      if (!key.is_text()) return InvalidArgument("keywords must be strings");
      arguments.named.emplace_back(key.bytes(), value);
    }
  }
  return arguments;
}

absl::StatusOr<Value> Interpreter::EvaluateLogic(const Expression& expression) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*expression.parts[0]));
  const bool is_true = left.IsTrue();
  if (expression.kind == Expression::Kind::kNot) return Value(!is_true);
  if (is_true == (expression.kind == Expression::Kind::kOr)) return left;
  return Evaluate(*expression.parts[1]);
}

absl::StatusOr<Value> Interpreter::EvaluateCompare(const Expression& expression) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*expression.parts[0]));
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Evaluate(*expression.parts[i + 1]));
    line_ = expression.line;
    ASSIGN_OR_RETURN(const bool holds, Compare(expression.operators[i], left, right, budget_));
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

absl::StatusOr<Value> Interpreter::EvaluateConcat(const Expression& expression) {
  MarkedText text;
  ASSIGN_OR_RETURN(const std::vector<Value> values, EvaluateAll(expression.parts, 0));
  for (const Value& value : values) {
    ASSIGN_OR_RETURN(const MarkedText part, ToText(value, budget_));
    RETURN_IF_ERROR(budget_.Grow(text.size(), text.size() + part.size()));
    text.Append(part);
  }
  return Value(std::move(text));
}

absl::StatusOr<Value> Interpreter::EvaluateConditional(const Expression& expression) {
  ASSIGN_OR_RETURN(const Value condition, Evaluate(*expression.parts[1]));
  if (condition.IsTrue()) return Evaluate(*expression.parts[0]);
  if (expression.parts[2]) return Evaluate(*expression.parts[2]);
  return Value::MakeUndefined(
      "the inline if-expression evaluated to false and no else section was defined");
}

absl::StatusOr<Value> Interpreter::EvaluateFilter(const Expression& expression,
                                                  const Value* subject) {
  const ExpressionPtr& inner = expression.parts[0];
  Value value;
  if (inner && inner->kind == Expression::Kind::kFilter) {
    const Level level(*this);  // a chain is one expression in itself
    RETURN_IF_ERROR(level.Check());
    ASSIGN_OR_RETURN(value, EvaluateFilter(*inner, subject));
  } else if (inner) {
    ASSIGN_OR_RETURN(value, Evaluate(*inner));
  } else if (subject != nullptr) {
    value = *subject;
  }
  ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expression));
  line_ = expression.line;
  return ApplyFilter(expression.name, value, arguments);
}

absl::StatusOr<Value> Interpreter::ApplyFilter(std::string_view name, const Value& subject,
                                               const Arguments& arguments) {
  RETURN_IF_ERROR(budget_.Steps(1 + (subject.is_text() ? subject.text().size() / 64 : 0)));
  if (const Function filter = FindFilter(name)) return filter(*this, subject, arguments);
  return InvalidArgument("no filter named '" + std::string(name.substr(0, 64)) + "'");
}

absl::StatusOr<bool> Interpreter::ApplyTest(std::string_view name, const Value& subject,
                                            const Arguments& arguments) {
  RETURN_IF_ERROR(budget_.Steps(1));
  const Function test = FindTest(name);
  if (test == nullptr) {
    return InvalidArgument("no test named '" + std::string(name.substr(0, 64)) + "'");
  }
  ASSIGN_OR_RETURN(const Value passes, test(*this, subject, arguments));
  return passes.IsTrue();
}

absl::StatusOr<Value> Interpreter::Call(const Value& callee, const Arguments& arguments) {
  const Level level(*this);
  RETURN_IF_ERROR(level.Check());
  if (callee.is_undefined()) return UndefinedError(callee);
  if (!callee.is_callable()) {
    return InvalidArgument("'" + std::string(callee.TypeName()) + "' object is not callable");
  }
  const Callable& callable = callee.callable();
  if (callable.kind == Callable::Kind::kMacro) return CallMacro(callable, arguments);
  const Value& receiver = callable.receiver;
  if (receiver.is_text()) RETURN_IF_ERROR(budget_.Steps(receiver.text().size() / 64));
  return callable.function(*this, receiver, arguments);
}

absl::StatusOr<Value> Interpreter::AttributeOf(const Value& value, std::string_view name) {
  if (value.is_undefined()) return UndefinedError(value);
  if (value.is_namespace()) {
    if (const Value* found = value.name_space().Find(name)) return *found;
  }
  if (value.is_loop()) {
    ASSIGN_OR_RETURN(std::optional<Value> found, value.loop().Attribute(name));
    if (found) return *std::move(found);
  }
  if (value.is_callable() && value.callable().macro != nullptr && name == "name") {
    return Value::Template(value.callable().name);
  }
  if (const Function method = FindMethod(value, name)) return MakeFunction(name, method, value);
  if (value.is_dict()) {
    if (const Value* found = value.dict().Find(name)) return *found;
  }
  return Value::MakeUndefined(Attributeless(value, name));
}

absl::StatusOr<Value> Interpreter::ItemOrAttribute(const Value& value, const Value& key) {
  if (value.is_text()) RETURN_IF_ERROR(budget_.Steps(value.text().size() / 64));
  ASSIGN_OR_RETURN(Value item, ItemOf(value, key));
  const bool is_entry = value.is_dict() && value.dict().Find(key) != nullptr;
  if (!item.is_undefined() || is_entry || !key.is_text()) return item;
  return AttributeOf(value, key.bytes());
}

}  // namespace sluice::engine::chat
