#include "engine/chat/operators.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "engine/base/status.h"
#include "engine/chat/percent_format.h"

namespace sluice::engine::chat {
namespace {

std::string_view Spelling(Operator op) {
  switch (op) {
    case Operator::kAdd:
      return "+";
    case Operator::kSubtract:
      return "-";
    case Operator::kMultiply:
      return "*";
    case Operator::kDivide:
      return "/";
    case Operator::kFloorDivide:
      return "//";
    case Operator::kModulo:
      return "%";
    case Operator::kPower:
      return "**";
    default:
      return "<";
  }
}

absl::Status Unsupported(Operator op, const Value& a, const Value& b) {
  return InvalidArgument("unsupported operand types for " + std::string(Spelling(op)) + ": '" +
                         std::string(a.TypeName()) + "' and '" + std::string(b.TypeName()) + "'");
}

absl::Status OutOfRange() { return InvalidArgument("an integer beyond 64 bits"); }

absl::StatusOr<Value> Power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return InvalidArgument("zero cannot be raised to a negative power");
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  if (base == 0 || base == 1) return Value(exponent == 0 ? int64_t{1} : base);
  if (base == -1) return Value(int64_t{exponent % 2 == 0 ? 1 : -1});
  for (int64_t i = 0; i < exponent; ++i) {  // ends after 63 rounds at most
    if (__builtin_mul_overflow(result, base, &result)) return OutOfRange();
  }
  return Value(result);
}

absl::StatusOr<Value> ComputeInts(Operator op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case Operator::kAdd:
      if (__builtin_add_overflow(a, b, &result)) return OutOfRange();
      return Value(result);
    case Operator::kSubtract:
      if (__builtin_sub_overflow(a, b, &result)) return OutOfRange();
      return Value(result);
    case Operator::kMultiply:
      if (__builtin_mul_overflow(a, b, &result)) return OutOfRange();
      return Value(result);
    case Operator::kPower:
      return Power(a, b);
    default:
      break;
  }
  if (b == 0) return InvalidArgument("division by zero");
  if (op == Operator::kDivide) return Value(static_cast<double>(a) / static_cast<double>(b));
  if (b == -1) {
    if (op == Operator::kModulo) return Value(int64_t{0});
    return ComputeInts(Operator::kSubtract, 0, a);
  }
  // Python rounds down.
  const bool rounds_down = a % b != 0 && (a % b < 0) != (b < 0);
  if (op == Operator::kModulo) return Value(rounds_down ? a % b + b : a % b);
  return Value(rounds_down ? a / b - 1 : a / b);
}

absl::StatusOr<Value> ComputeFloats(Operator op, double a, double b) {
  switch (op) {
    case Operator::kAdd:
      return Value(a + b);
    case Operator::kSubtract:
      return Value(a - b);
    case Operator::kMultiply:
      return Value(a * b);
    case Operator::kPower: {
      if (a == 0 && b < 0) return InvalidArgument("zero cannot be raised to a negative power");
      const double result = std::pow(a, b);
      if (std::isnan(result) && !std::isnan(a) && !std::isnan(b)) {
        return InvalidArgument("complex numbers are not supported");
      }
      if (std::isinf(result) && !std::isinf(a) && !std::isinf(b)) {
        return InvalidArgument("a float out of range");
      }
      return Value(result);
    }
    default:
      break;
  }
  if (b == 0) return InvalidArgument("division by zero");
  if (op == Operator::kDivide) return Value(a / b);
  double rest = std::fmod(a, b);
  double quotient = (a - rest) / b;
  if (rest != 0 && (rest < 0) != (b < 0)) {
    rest += b;
    quotient -= 1;
  } else if (rest == 0) {
    rest = std::copysign(0.0, b);
  }
  if (op == Operator::kModulo) return Value(rest);
  if (quotient == 0) return Value(std::copysign(0.0, a / b));
  const double floor = std::floor(quotient);
  return Value(quotient - floor > 0.5 ? floor + 1 : floor);
}

bool IsListOrTuple(const Value& value, Sequence::Kind kind) {
  return value.is_sequence() && value.sequence().kind == kind;
}

// Both are lists or both are tuples.
bool AreAlike(const Value& a, const Value& b) {
  for (const Sequence::Kind kind : {Sequence::Kind::kList, Sequence::Kind::kTuple}) {
    if (IsListOrTuple(a, kind) && IsListOrTuple(b, kind)) return true;
  }
  return false;
}

absl::StatusOr<Value> Repeat(const Value& value, int64_t times, Budget& budget) {
  const int64_t count = std::max<int64_t>(0, times);
  const size_t size = value.is_text() ? value.text().size() : value.sequence().items.size();
  size_t total = 0;
  if (__builtin_mul_overflow(size, static_cast<size_t>(count), &total)) {
    total = std::numeric_limits<size_t>::max();
  }
  if (value.is_text()) {
    RETURN_IF_ERROR(budget.Text(total));
    MarkedText text;
    for (int64_t i = 0; i < count && size > 0; ++i) text.Append(value.text());
    return Value(std::move(text));
  }
  // Before the items themselves are counted: so many that the count could wrap.
  if (total > budget.limits().max_built_bytes) total = budget.limits().max_built_bytes;
  RETURN_IF_ERROR(budget.Items(total));
  std::vector<Value> items;
  for (int64_t i = 0; i < count && size > 0; ++i) {
    items.insert(items.end(), value.sequence().items.begin(), value.sequence().items.end());
  }
  return IsListOrTuple(value, Sequence::Kind::kList) ? Value::List(std::move(items))
                                                     : Value::Tuple(std::move(items));
}

absl::StatusOr<Value> Concatenate(const Value& a, const Value& b, Budget& budget) {
  if (a.is_text()) {
    RETURN_IF_ERROR(budget.Text(a.text().size() + b.text().size()));
    MarkedText text = a.text();
    text.Append(b.text());
    return Value(std::move(text));
  }
  std::vector<Value> items = a.sequence().items;
  RETURN_IF_ERROR(budget.Items(items.size() + b.sequence().items.size()));
  items.insert(items.end(), b.sequence().items.begin(), b.sequence().items.end());
  return IsListOrTuple(a, Sequence::Kind::kList) ? Value::List(std::move(items))
                                                 : Value::Tuple(std::move(items));
}

bool IsRepeatable(const Value& value) {
  return value.is_text() || IsListOrTuple(value, Sequence::Kind::kList) ||
         IsListOrTuple(value, Sequence::Kind::kTuple);
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item, Budget& budget) {
  if (container.is_text()) {
    if (!item.is_text()) {
      if (item.is_undefined()) return UndefinedError(item);
      return InvalidArgument("'in <string>' requires string as left operand, not " +
                             std::string(item.TypeName()));
    }
    const std::string& text = container.bytes();
    RETURN_IF_ERROR(budget.Steps(text.size() / 256));
    // Linear in both, whatever they are.
    return memmem(text.data(), text.size(), item.bytes().data(), item.bytes().size()) != nullptr;
  }
  if (container.is_dict()) {
    if (item.is_undefined()) return false;  // hashable in Python, equal to no key
    if (!Dict::IsHashable(item)) {
      return InvalidArgument("unhashable type: '" + std::string(item.TypeName()) + "'");
    }
    return container.dict().Find(item) != nullptr;
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, ItemsOf(container, budget));
  for (const Value& candidate : items) {
    RETURN_IF_ERROR(budget.Steps(1));
    if (AreEqual(candidate, item)) return true;
  }
  return false;
}

}  // namespace

absl::Status UndefinedError(const Value& value) {
  const std::string* hint = value.hint();
  return InvalidArgument(hint == nullptr ? "a value is undefined" : *hint);
}

absl::StatusOr<Value> Compute(Operator op, const Value& a, const Value& b, Budget& budget) {
  // The text of a format takes anything, undefined values too.
  if (op == Operator::kModulo && a.is_text()) {
    ASSIGN_OR_RETURN(MarkedText text, FormatPercent(a.text(), b, budget));
    return Value(std::move(text));
  }
  if (a.is_undefined()) return UndefinedError(a);
  if (b.is_undefined()) return UndefinedError(b);
  if (a.is_number() && b.is_number()) {
    const auto left = a.AsInt(), right = b.AsInt();
    if (left && right) return ComputeInts(op, *left, *right);
    return ComputeFloats(op, *a.AsDouble(), *b.AsDouble());
  }
  if (op == Operator::kAdd && ((a.is_text() && b.is_text()) || AreAlike(a, b))) {
    return Concatenate(a, b, budget);
  }
  if (op == Operator::kMultiply) {
    if (const auto times = b.AsInt(); times && IsRepeatable(a)) return Repeat(a, *times, budget);
    if (const auto times = a.AsInt(); times && IsRepeatable(b)) return Repeat(b, *times, budget);
  }
  return Unsupported(op, a, b);
}

absl::StatusOr<int> Order(const Value& a, const Value& b, Budget& budget) {
  RETURN_IF_ERROR(budget.Steps(1));
  if (a.is_undefined()) return UndefinedError(a);
  if (b.is_undefined()) return UndefinedError(b);
  if (a.is_number() && b.is_number()) {
    const auto left = a.AsInt(), right = b.AsInt();
    if (left && right) return *left < *right ? -1 : *left > *right ? 1 : 0;
    const double x = *a.AsDouble(), y = *b.AsDouble();
    return x < y ? -1 : x > y ? 1 : 0;
  }
  // The bytes of UTF-8 are in the order of code points.
  if (a.is_text() && b.is_text()) return a.bytes().compare(b.bytes());
  if (AreAlike(a, b)) {
    const std::vector<Value>& left = a.sequence().items;
    const std::vector<Value>& right = b.sequence().items;
    for (size_t i = 0; i < left.size() && i < right.size(); ++i) {
      RETURN_IF_ERROR(budget.Steps(1));
      if (!AreEqual(left[i], right[i])) return Order(left[i], right[i], budget);
    }
    return left.size() < right.size() ? -1 : left.size() > right.size() ? 1 : 0;
  }
  return InvalidArgument("'<' not supported between instances of '" + std::string(a.TypeName()) +
                         "' and '" + std::string(b.TypeName()) + "'");
}

absl::StatusOr<bool> Compare(Operator op, const Value& a, const Value& b, Budget& budget) {
  if (op == Operator::kIn || op == Operator::kNotIn) {
    ASSIGN_OR_RETURN(const bool contains, Contains(b, a, budget));
    return contains == (op == Operator::kIn);
  }
  if (op == Operator::kEqual || op == Operator::kNotEqual) {
    if (a.is_sequence()) RETURN_IF_ERROR(budget.Items(a.sequence().items.size()));
    if (a.is_dict()) RETURN_IF_ERROR(budget.Items(a.dict().entries.size()));
    return AreEqual(a, b) == (op == Operator::kEqual);
  }
  const auto is_nan = [](const Value& value) {
    return value.is_float() && std::isnan(value.as_float());
  };
  if ((is_nan(a) && b.is_number()) || (is_nan(b) && a.is_number())) return false;
  ASSIGN_OR_RETURN(const int order, Order(a, b, budget));
  switch (op) {
    case Operator::kLess:
      return order < 0;
    case Operator::kLessEqual:
      return order <= 0;
    case Operator::kGreater:
      return order > 0;
    default:
      return order >= 0;
  }
}

absl::StatusOr<Value> Negate(const Value& value) {
  if (value.is_undefined()) return UndefinedError(value);
  if (value.is_float()) return Value(-value.as_float());
  if (const auto number = value.AsInt()) return ComputeInts(Operator::kSubtract, 0, *number);
  return InvalidArgument("bad operand type for unary -: '" + std::string(value.TypeName()) + "'");
}

}  // namespace sluice::engine::chat
