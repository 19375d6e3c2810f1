#pragma once

#include <cstdint>
#include <ctime>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/chat/callable.h"
#include "engine/chat/limits.h"
#include "engine/chat/loop_state.h"
#include "engine/chat/scope.h"
#include "engine/chat/syntax_tree.h"
#include "engine/chat/value.h"

namespace sluice::engine::chat {

// Renders a parsed template once. Not thread-safe; holds everything that the rendering makes.
class Interpreter {
 public:
  // `variables`: what the template sees besides its functions. `now`: of strftime_now, seconds
  // since 1970.
  Interpreter(const Limits& limits, std::vector<std::pair<std::string, Value>> variables,
              std::time_t now);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // Errors begin with "line N: "; RESOURCE_EXHAUSTED is a limit.
  absl::StatusOr<MarkedText> Render(const Block& block);

  // For filters and functions.
  Budget& budget() { return budget_; }
  std::time_t now() const { return now_; }
  absl::StatusOr<Value> Call(const Value& callee, const Arguments& arguments);
  absl::StatusOr<Value> ApplyFilter(std::string_view name, const Value& subject,
                                    const Arguments& arguments);
  absl::StatusOr<bool> ApplyTest(std::string_view name, const Value& subject,
                                 const Arguments& arguments);
  // `value.name` and `value[key]`: of a dict the first finds methods first, the second entries.
  absl::StatusOr<Value> AttributeOf(const Value& value, std::string_view name);
  absl::StatusOr<Value> ItemOrAttribute(const Value& value, const Value& key);
  Namespace* NewNamespace();

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };
  using ScopePtr = std::shared_ptr<Scope>;
  // One level of evaluation while it lives.
  class Level;

  // Statements.
  absl::StatusOr<Flow> Run(const Block& block);
  absl::StatusOr<Flow> RunOne(const Statement& statement);
  absl::StatusOr<Flow> RunIf(const Statement& statement);
  absl::StatusOr<Flow> RunFor(const Statement& statement);
  absl::StatusOr<Flow> RunLoop(const Statement& statement, LoopState& loop,
                               const Value& loop_value);
  absl::Status RunSetBlock(const Statement& statement);
  absl::Status RunCallBlock(const Statement& statement);
  absl::StatusOr<Flow> RunWith(const Statement& statement);
  // The body in a scope of its own, its text caught.
  absl::StatusOr<MarkedText> Capture(const Block& body);
  absl::Status Assign(const Target& target, const Value& value, Scope& scope);
  absl::Status Output(const Value& value);
  absl::Status OutputText(const MarkedText& text);

  // Expressions.
  absl::StatusOr<Value> Evaluate(const Expression& expression);
  absl::StatusOr<Value> EvaluateKind(const Expression& expression);
  absl::StatusOr<std::vector<Value>> EvaluateAll(const std::vector<ExpressionPtr>& parts,
                                                 size_t from);
  absl::StatusOr<Value> EvaluateName(const Expression& expression);
  absl::StatusOr<Value> EvaluateDict(const Expression& expression);
  absl::StatusOr<Value> EvaluateSlice(const Expression& expression);
  absl::StatusOr<Value> EvaluateCall(const Expression& expression);
  absl::StatusOr<Value> EvaluateLogic(const Expression& expression);
  absl::StatusOr<Value> EvaluateCompare(const Expression& expression);
  absl::StatusOr<Value> EvaluateConcat(const Expression& expression);
  absl::StatusOr<Value> EvaluateConditional(const Expression& expression);
  // A chain of filters; `subject` stands where the chain has none.
  absl::StatusOr<Value> EvaluateFilter(const Expression& expression, const Value* subject);
  absl::StatusOr<Arguments> EvaluateArguments(const Expression& expression);
  absl::StatusOr<Value> CallMacro(const Callable& callable, const Arguments& arguments);
  absl::Status BindParameters(const Statement& macro, const Arguments& arguments, Scope& scope);
  static Value MakeMacro(const Statement& statement, const ScopePtr& scope);

  Budget budget_;
  const std::time_t now_;
  const std::vector<std::pair<std::string, Value>> variables_;
  ScopePtr scope_;
  MarkedText* out_ = nullptr;  // what is rendered goes here
  int line_ = 0;               // of what is evaluated
  int depth_ = 0;
  std::deque<Namespace> namespaces_;
};

}  // namespace sluice::engine::chat
