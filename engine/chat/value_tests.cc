#include <string>
#include <utility>

#include "engine/base/status.h"
#include "engine/chat/arguments.h"
#include "engine/chat/filter_table.h"
#include "engine/chat/interpreter.h"
#include "engine/chat/unicode.h"
#include "engine/chat/value_text.h"

// What `is` can ask of a value.
namespace sluice::engine::chat {
namespace {

using Kind = bool (Value::*)() const;

template <Kind kIs>
absl::StatusOr<Value> Ask(Interpreter& /*interpreter*/, const Value& subject,
                          const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("test", arguments, {}).status());
  return Value((subject.*kIs)());
}

using Question = bool (*)(const Value& value);

template <Question kAsk>
absl::StatusOr<Value> AskAbout(Interpreter& /*interpreter*/, const Value& subject,
                               const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("test", arguments, {}).status());
  return Value(kAsk(subject));
}

bool IsDefined(const Value& value) { return !value.is_undefined(); }
bool IsTrueBool(const Value& value) { return value.is_bool() && value.IsTrue(); }
bool IsFalseBool(const Value& value) { return value.is_bool() && !value.IsTrue(); }
bool IsCallable(const Value& value) { return value.is_callable() || value.is_undefined(); }
bool IsEscaped(const Value& /*value*/) { return false; }

template <Operator kOperator>
absl::StatusOr<Value> CompareTest(Interpreter& interpreter, const Value& subject,
                                  const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("test", arguments, {"other"}, 1));
  ASSIGN_OR_RETURN(const bool holds, Compare(kOperator, subject, bound[0], interpreter.budget()));
  return Value(holds);
}

absl::StatusOr<bool> IsDivisible(const Value& subject, int64_t divisor, int64_t rest,
                                 Budget& budget) {
  ASSIGN_OR_RETURN(const Value found, Compute(Operator::kModulo, subject, Value(divisor), budget));
  return AreEqual(found, Value(rest));
}

template <int64_t kRest>
absl::StatusOr<Value> Parity(Interpreter& interpreter, const Value& subject,
                             const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("test", arguments, {}).status());
  ASSIGN_OR_RETURN(const bool holds, IsDivisible(subject, 2, kRest, interpreter.budget()));
  return Value(holds);
}

absl::StatusOr<Value> DivisibleBy(Interpreter& interpreter, const Value& subject,
                                  const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("divisibleby", arguments, {"num"}, 1));
  ASSIGN_OR_RETURN(const int64_t divisor, bound.Int(0, 0));
  ASSIGN_OR_RETURN(const bool holds, IsDivisible(subject, divisor, 0, interpreter.budget()));
  return Value(holds);
}

// str.islower or str.isupper.
template <bool (*kWanted)(char32_t), bool (*kOther)(char32_t)>
absl::StatusOr<Value> CaseTest(Interpreter& interpreter, const Value& subject,
                               const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("test", arguments, {}).status());
  ASSIGN_OR_RETURN(const MarkedText text, ToText(subject, interpreter.budget()));
  bool has_wanted = false;
  for (const char32_t c : CodePoints(text.bytes()).values) {
    if (kOther(c) || IsTitle(c)) return Value(false);
    has_wanted |= kWanted(c);
  }
  return Value(has_wanted);
}

absl::StatusOr<Value> SameAs(Interpreter& /*interpreter*/, const Value& subject,
                             const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("sameas", arguments, {"other"}, 1));
  return Value(subject.IsSame(bound[0]));
}

template <Function (*kFind)(std::string_view)>
absl::StatusOr<Value> Exists(Interpreter& /*interpreter*/, const Value& subject,
                             const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("test", arguments, {}).status());
  if (!Dict::IsHashable(subject)) {
    return InvalidArgument("unhashable type: '" + std::string(subject.TypeName()) + "'");
  }
  return Value(subject.is_text() && kFind(subject.bytes()) != nullptr);
}

bool IsSequenceLike(const Value& value) {
  return value.is_undefined() || value.is_text() || value.is_dict() ||
         (value.is_sequence() && value.sequence().has_index());
}

bool IsIterable(const Value& value) {
  return value.is_undefined() || value.is_text() || value.is_dict() || value.is_sequence() ||
         value.is_loop();
}

}  // namespace

Function FindTest(std::string_view name) {
  static constexpr std::pair<std::string_view, Function> kTests[] = {
      {"defined", AskAbout<IsDefined>},
      {"undefined", Ask<&Value::is_undefined>},
      {"none", Ask<&Value::is_none>},
      {"boolean", Ask<&Value::is_bool>},
      {"true", AskAbout<IsTrueBool>},
      {"false", AskAbout<IsFalseBool>},
      {"integer", Ask<&Value::is_int>},
      {"float", Ask<&Value::is_float>},
      {"number", Ask<&Value::is_number>},
      {"string", Ask<&Value::is_text>},
      {"mapping", Ask<&Value::is_dict>},
      {"sequence", AskAbout<IsSequenceLike>},
      {"iterable", AskAbout<IsIterable>},
      {"callable", AskAbout<IsCallable>},
      {"escaped", AskAbout<IsEscaped>},
      {"odd", Parity<1>},
      {"even", Parity<0>},
      {"divisibleby", DivisibleBy},
      {"lower", CaseTest<IsLower, IsUpper>},
      {"upper", CaseTest<IsUpper, IsLower>},
      {"sameas", SameAs},
      {"filter", Exists<FindFilter>},
      {"test", Exists<FindTest>},
      {"in", CompareTest<Operator::kIn>},
      {"==", CompareTest<Operator::kEqual>},
      {"eq", CompareTest<Operator::kEqual>},
      {"equalto", CompareTest<Operator::kEqual>},
      {"!=", CompareTest<Operator::kNotEqual>},
      {"ne", CompareTest<Operator::kNotEqual>},
      {">", CompareTest<Operator::kGreater>},
      {"gt", CompareTest<Operator::kGreater>},
      {"greaterthan", CompareTest<Operator::kGreater>},
      {">=", CompareTest<Operator::kGreaterEqual>},
      {"ge", CompareTest<Operator::kGreaterEqual>},
      {"<", CompareTest<Operator::kLess>},
      {"lt", CompareTest<Operator::kLess>},
      {"lessthan", CompareTest<Operator::kLess>},
      {"<=", CompareTest<Operator::kLessEqual>},
      {"le", CompareTest<Operator::kLessEqual>}};
  for (const auto& [known, test] : kTests) {
    if (known == name) return test;
  }
  return nullptr;
}

}  // namespace sluice::engine::chat
