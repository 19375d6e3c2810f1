#include "engine/chat/interpreter.h"

#include <algorithm>
#include <optional>

#include "engine/base/status.h"
#include "engine/chat/interpreter_level.h"
#include "engine/chat/operators.h"
#include "engine/chat/value_text.h"

// What statements do; evaluator.cc has the expressions.
namespace sluice::engine::chat {

Interpreter::Interpreter(const Limits& limits, std::vector<std::pair<std::string, Value>> variables,
                         std::time_t now)
    : budget_(limits), now_(now), variables_(std::move(variables)) {}

Interpreter::~Interpreter() {
  // They may hold each other's macros and loops.
  for (Namespace& space : namespaces_) space.attributes.clear();
}

Namespace* Interpreter::NewNamespace() { return &namespaces_.emplace_back(); }

absl::StatusOr<MarkedText> Interpreter::Render(const Block& block) {
  const auto outermost = std::make_shared<Scope>();
  for (const auto& [name, value] : variables_) outermost->Set(name, value);
  scope_ = std::make_shared<Scope>(Scope{outermost, {}});
  MarkedText out;
  out_ = &out;
  const absl::StatusOr<Flow> flow = Run(block);
  scope_.reset();
  if (flow.ok()) return out;
  return Prefix("line " + std::to_string(line_), flow.status());
}

absl::StatusOr<Interpreter::Flow> Interpreter::Run(const Block& block) {
  for (const Statement& statement : block) {
    ASSIGN_OR_RETURN(const Flow flow, RunOne(statement));
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::RunOne(const Statement& statement) {
  using Kind = Statement::Kind;
  const Level level(*this);
  line_ = statement.line;
  RETURN_IF_ERROR(level.Check());
  switch (statement.kind) {
    case Kind::kText:
      RETURN_IF_ERROR(OutputText(statement.constant.text()));
      break;
    case Kind::kOutput: {
      ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.value));
      RETURN_IF_ERROR(Output(value));
      break;
    }
    case Kind::kIf:
      return RunIf(statement);
    case Kind::kFor:
      return RunFor(statement);
    case Kind::kSet: {
      ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.value));
      RETURN_IF_ERROR(Assign(statement.target, value, *scope_));
      break;
    }
    case Kind::kSetBlock:
      RETURN_IF_ERROR(RunSetBlock(statement));
      break;
    case Kind::kMacro:
      scope_->Set(statement.name, MakeMacro(statement, scope_));
      break;
    case Kind::kCallBlock:
      RETURN_IF_ERROR(RunCallBlock(statement));
      break;
    case Kind::kFilterBlock: {
      ASSIGN_OR_RETURN(MarkedText text, Capture(statement.body));
      const Value subject(std::move(text));
      ASSIGN_OR_RETURN(const Value value, EvaluateFilter(*statement.value, &subject));
      RETURN_IF_ERROR(Output(value));
      break;
    }
    case Kind::kWith:
    case Kind::kScope:
      return RunWith(statement);
    case Kind::kBreak:
      return Flow::kBreak;
    case Kind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::RunIf(const Statement& statement) {
  const Statement* branch = &statement;
  while (true) {
    line_ = branch->line;
    ASSIGN_OR_RETURN(const Value condition, Evaluate(*branch->value));
    if (condition.IsTrue()) return Run(branch->body);
    const Block& otherwise = branch->otherwise;
    const bool is_elif = otherwise.size() == 1 && otherwise[0].kind == Statement::Kind::kIf;
    if (!is_elif) return Run(otherwise);
    branch = &otherwise[0];
  }
}

absl::StatusOr<Interpreter::Flow> Interpreter::RunFor(const Statement& statement) {
  ASSIGN_OR_RETURN(const Value iterable, Evaluate(*statement.value));
  ASSIGN_OR_RETURN(std::vector<Value> items, ItemsOf(iterable, budget_));
  const ScopePtr outer = scope_;
  LoopState::Condition condition;
  if (statement.condition) {
    condition = [this, &statement, outer](const Value& item) -> absl::StatusOr<bool> {
      const ScopePtr scope = std::make_shared<Scope>(Scope{outer, {}});
      RETURN_IF_ERROR(Assign(statement.target, item, *scope));
      const ScopePtr inner = std::exchange(scope_, scope);
      const absl::StatusOr<Value> takes_part = Evaluate(*statement.condition);
      scope_ = inner;
      RETURN_IF_ERROR(takes_part.status());
      return takes_part->IsTrue();
    };
  }
  const auto loop = std::make_shared<LoopState>(std::move(items), std::move(condition));
  const absl::StatusOr<Flow> flow = RunLoop(statement, *loop, Value(loop));
  loop->Close();
  scope_ = outer;
  return flow;
}

absl::StatusOr<Interpreter::Flow> Interpreter::RunLoop(const Statement& statement, LoopState& loop,
                                                       const Value& loop_value) {
  const ScopePtr outer = scope_;
  bool has_run = false;
  while (true) {
    RETURN_IF_ERROR(budget_.Steps(1));
    ASSIGN_OR_RETURN(const bool goes_on, loop.Advance());
    if (!goes_on) break;
    has_run = true;
    // Every round has variables of its own.
    scope_ = std::make_shared<Scope>(Scope{outer, {}});
    RETURN_IF_ERROR(Assign(statement.target, loop.item(), *scope_));
    scope_->Set("loop", loop_value);
    ASSIGN_OR_RETURN(const Flow flow, Run(statement.body));
    scope_ = outer;
    if (flow == Flow::kBreak) break;
  }
  if (has_run || statement.otherwise.empty()) return Flow::kNext;
  scope_ = std::make_shared<Scope>(Scope{outer, {}});
  absl::StatusOr<Flow> flow = Run(statement.otherwise);
  scope_ = outer;
  return flow;
}

absl::Status Interpreter::RunSetBlock(const Statement& statement) {
  ASSIGN_OR_RETURN(MarkedText text, Capture(statement.body));
  Value value(std::move(text));
  if (statement.value) {
    const Value subject = value;
    ASSIGN_OR_RETURN(value, EvaluateFilter(*statement.value, &subject));
  }
  return Assign(statement.target, value, *scope_);
}

absl::Status Interpreter::RunCallBlock(const Statement& statement) {
  ASSIGN_OR_RETURN(const Value callee, Evaluate(*statement.value->parts[0]));
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(*statement.value));
  arguments.named.emplace_back("caller", MakeMacro(statement, scope_));
  ASSIGN_OR_RETURN(const Value value, Call(callee, arguments));
  return Output(value);
}

absl::StatusOr<Interpreter::Flow> Interpreter::RunWith(const Statement& statement) {
  const ScopePtr outer = scope_;
  const ScopePtr scope = std::make_shared<Scope>(Scope{outer, {}});
  // Values are those from outside: they do not see each other.
  for (const auto& [target, expression] : statement.assignments) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*expression));
    RETURN_IF_ERROR(Assign(target, value, *scope));
  }
  scope_ = scope;
  absl::StatusOr<Flow> flow = Run(statement.body);
  scope_ = outer;
  return flow;
}

absl::StatusOr<MarkedText> Interpreter::Capture(const Block& body) {
  MarkedText text;
  MarkedText* const out = std::exchange(out_, &text);
  const ScopePtr outer = scope_;
  scope_ = std::make_shared<Scope>(Scope{outer, {}});
  const absl::StatusOr<Flow> flow = Run(body);
  scope_ = outer;
  out_ = out;
  RETURN_IF_ERROR(flow.status());
  return text;
}

absl::Status Interpreter::Assign(const Target& target, const Value& value, Scope& scope) {
  if (!target.attribute.empty()) {
    const Value* space = scope.Find(target.name);
    if (space == nullptr || !space->is_namespace()) {
      return InvalidArgument("cannot assign attribute on non-namespace object");
    }
    space->name_space().Set(target.attribute, value);
    return absl::OkStatus();
  }
  if (target.parts.empty()) {
    scope.Set(target.name, value);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(value, budget_));
  if (items.size() != target.parts.size()) {
    return InvalidArgument("expected " + std::to_string(target.parts.size()) +
                           " values to unpack, got " + std::to_string(items.size()));
  }
  for (size_t i = 0; i < items.size(); ++i) {
    RETURN_IF_ERROR(Assign(target.parts[i], items[i], scope));
  }
  return absl::OkStatus();
}

absl::Status Interpreter::Output(const Value& value) {
  if (value.is_text()) return OutputText(value.text());
  ASSIGN_OR_RETURN(const MarkedText text, ToText(value, budget_));
  return OutputText(text);
}

absl::Status Interpreter::OutputText(const MarkedText& text) {
  RETURN_IF_ERROR(budget_.Grow(out_->size(), out_->size() + text.size()));
  out_->Append(text);
  return absl::OkStatus();
}

Value Interpreter::MakeMacro(const Statement& statement, const ScopePtr& scope) {
  auto callable = std::make_shared<Callable>();
  callable->kind = Callable::Kind::kMacro;
  callable->name = statement.name;
  callable->macro = &statement;
  callable->scope = scope;
  return Value(Value::CallablePtr(std::move(callable)));
}

absl::Status Interpreter::BindParameters(const Statement& macro, const Arguments& arguments,
                                         Scope& scope) {
  std::vector<std::pair<std::string, Value>> named = arguments.named;
  const auto take = [&named](std::string_view name) -> std::optional<Value> {
    const auto found = std::find_if(named.begin(), named.end(),
                                    [name](const auto& entry) { return entry.first == name; });
    if (found == named.end()) return std::nullopt;
    Value value = std::move(found->second);
    named.erase(found);
    return value;
  };
  const size_t num_parameters = macro.parameters.size();
  bool has_caller = false;
  std::vector<const Parameter*> missing;
  for (size_t i = 0; i < num_parameters; ++i) {
    const Parameter& parameter = macro.parameters[i];
    has_caller |= parameter.name == "caller";
    std::optional<Value> value;
    if (i < arguments.positional.size()) {
      value = arguments.positional[i];
    } else {
      value = take(parameter.name);
    }
    if (!value) missing.push_back(&parameter);
    scope.Set(parameter.name,
              value ? *std::move(value)
                    : Value::MakeUndefined("parameter '" + parameter.name + "' was not provided"));
  }
  // Defaults see the other parameters, and themselves as undefined.
  for (const Parameter* parameter : missing) {
    if (!parameter->default_value) continue;
    ASSIGN_OR_RETURN(Value value, Evaluate(*parameter->default_value));
    scope.Set(parameter->name, std::move(value));
  }
  if (macro.takes_caller && !has_caller) {
    scope.Set("caller", take("caller").value_or(Value::MakeUndefined("No caller defined")));
  }
  if (macro.takes_named) {
    auto dict = std::make_shared<Dict>();
    for (auto& [name, value] : named) dict->Set(Value::Content(name), std::move(value));
    scope.Set("kwargs", Value(Value::DictPtr(std::move(dict))));
  } else if (!named.empty()) {
    return InvalidArgument("macro '" + macro.name + "' takes no keyword argument '" +
                           named.front().first.substr(0, 64) + "'");
  }
  if (macro.takes_positional) {
    const auto& positional = arguments.positional;
    const size_t num_bound = std::min(num_parameters, positional.size());
    scope.Set("varargs", Value::Tuple({positional.begin() + static_cast<std::ptrdiff_t>(num_bound),
                                       positional.end()}));
  } else if (arguments.positional.size() > num_parameters) {
    return InvalidArgument("macro '" + macro.name + "' takes not more than " +
                           std::to_string(num_parameters) + " argument(s)");
  }
  return absl::OkStatus();
}

absl::StatusOr<Value> Interpreter::CallMacro(const Callable& callable, const Arguments& arguments) {
  const ScopePtr defined_in = callable.scope.lock();
  if (!defined_in) {
    return InvalidArgument("macro '" + callable.name + "' is called outside of its scope");
  }
  const Statement& macro = *callable.macro;
  const ScopePtr scope = std::make_shared<Scope>(Scope{defined_in, {}});
  const ScopePtr outer = std::exchange(scope_, scope);
  MarkedText text;
  MarkedText* const out = std::exchange(out_, &text);
  absl::Status status = BindParameters(macro, arguments, *scope);
  if (status.ok()) status = Run(macro.body).status();
  scope_ = outer;
  out_ = out;
  RETURN_IF_ERROR(status);
  return Value(std::move(text));
}

}  // namespace sluice::engine::chat
