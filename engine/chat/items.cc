#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/chat/operators.h"
#include "engine/chat/unicode.h"

// What is inside containers: items, slices, iteration, length.
namespace sluice::engine::chat {
namespace {

// Negative indices count from the end.
absl::StatusOr<Value> AtIndex(size_t size, int64_t index, std::string_view type) {
  if (index < 0) index += static_cast<int64_t>(size);
  if (index >= 0 && index < static_cast<int64_t>(size)) return Value(index);
  return Value::MakeUndefined(std::string(type) + " object has no element " +
                              std::to_string(index));
}

absl::StatusOr<int64_t> Bound(const Value& value, int64_t otherwise) {
  if (value.is_none()) return otherwise;
  if (const auto number = value.AsInt()) return *number;
  return InvalidArgument("slice indices must be integers or None, not " +
                         std::string(value.TypeName()));
}

// The indices that [begin:end:step] takes of `size` items, as Python's slice.indices.
absl::StatusOr<std::vector<size_t>> SliceIndices(size_t size, const Value& begin_value,
                                                 const Value& end_value, const Value& step_value) {
  const auto count = static_cast<int64_t>(size);
  ASSIGN_OR_RETURN(int64_t step, Bound(step_value, 1));
  if (step == 0) return InvalidArgument("slice step cannot be zero");
  step = std::clamp(step, -count - 1, count + 1);
  ASSIGN_OR_RETURN(int64_t begin, Bound(begin_value, step > 0 ? 0 : count - 1));
  ASSIGN_OR_RETURN(int64_t end, Bound(end_value, step > 0 ? count : -count - 1));
  const int64_t least = step > 0 ? 0 : -1;
  const int64_t most = step > 0 ? count : count - 1;
  const auto clamp = [&](int64_t bound) {
    if (bound < 0) bound = bound < -count ? -1 : bound + count;
    return std::clamp(bound, least, most);
  };
  begin = clamp(begin);
  end = clamp(end);
  std::vector<size_t> indices;
  for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) {
    indices.push_back(static_cast<size_t>(i));
  }
  return indices;
}

absl::StatusOr<Value> SliceOfText(const MarkedText& text, const Value& begin, const Value& end,
                                  const Value& step, Budget& budget) {
  RETURN_IF_ERROR(budget.Steps(text.size() / 64));
  const CodePoints points(text.bytes());
  ASSIGN_OR_RETURN(const std::vector<size_t> indices,
                   SliceIndices(points.values.size(), begin, end, step));
  RETURN_IF_ERROR(budget.Text(indices.size()));
  if (indices.empty()) return Value(MarkedText());
  if (indices.back() - indices.front() + 1 == indices.size()) {  // one piece
    const size_t from = points.offsets[indices.front()];
    return Value(text.Substr(from, points.offsets[indices.back() + 1] - from));
  }
  MarkedText out;
  for (const size_t i : indices) {
    out.Append(text, points.offsets[i], points.offsets[i + 1] - points.offsets[i]);
  }
  return Value(std::move(out));
}

}  // namespace

absl::StatusOr<Value> ItemOf(const Value& container, const Value& key) {
  if (container.is_undefined()) return UndefinedError(container);
  const std::string type = "'" + std::string(container.TypeName()) + " object'";
  if (container.is_dict()) {
    if (const Value* value = container.dict().Find(key)) return *value;
  } else if (const auto index = key.AsInt()) {
    if (container.is_text()) {
      const CodePoints points(container.bytes());
      ASSIGN_OR_RETURN(const Value at, AtIndex(points.values.size(), *index, "str"));
      if (at.is_undefined()) return at;
      const auto i = static_cast<size_t>(*at.AsInt());
      return Value(
          container.text().Substr(points.offsets[i], points.offsets[i + 1] - points.offsets[i]));
    }
    if (container.is_sequence() && container.sequence().has_index()) {
      const std::vector<Value>& items = container.sequence().items;
      ASSIGN_OR_RETURN(const Value at, AtIndex(items.size(), *index, container.TypeName()));
      return at.is_undefined() ? at : items[static_cast<size_t>(*at.AsInt())];
    }
  }
  if (key.is_text()) {
    return Value::MakeUndefined(type + " has no attribute '" + key.bytes().substr(0, 64) + "'");
  }
  return Value::MakeUndefined(type + " has no such element");
}

absl::StatusOr<Value> SliceOf(const Value& container, const Value& begin, const Value& end,
                              const Value& step, Budget& budget) {
  if (container.is_undefined()) return UndefinedError(container);
  if (container.is_text()) return SliceOfText(container.text(), begin, end, step, budget);
  if (!container.is_sequence() || !container.sequence().has_index()) {
    return InvalidArgument("'" + std::string(container.TypeName()) + "' object cannot be sliced");
  }
  const Sequence& sequence = container.sequence();
  ASSIGN_OR_RETURN(const std::vector<size_t> indices,
                   SliceIndices(sequence.items.size(), begin, end, step));
  RETURN_IF_ERROR(budget.Items(indices.size()));
  std::vector<Value> items;
  items.reserve(indices.size());
  for (const size_t i : indices) items.push_back(sequence.items[i]);
  return sequence.kind == Sequence::Kind::kTuple ? Value::Tuple(std::move(items))
                                                 : Value::List(std::move(items));
}

absl::StatusOr<std::vector<Value>> ItemsOf(const Value& value, Budget& budget) {
  std::vector<Value> items;
  if (value.is_undefined()) return items;
  if (value.is_sequence()) {
    Sequence& sequence = value.sequence();
    RETURN_IF_ERROR(budget.Items(sequence.items.size() - sequence.num_taken));
    items.assign(sequence.items.begin() + static_cast<std::ptrdiff_t>(sequence.num_taken),
                 sequence.items.end());
    if (sequence.kind == Sequence::Kind::kGenerator) sequence.num_taken = sequence.items.size();
    return items;
  }
  if (value.is_dict()) {
    RETURN_IF_ERROR(budget.Items(value.dict().entries.size()));
    for (const auto& [key, item] : value.dict().entries) items.push_back(key);
    return items;
  }
  if (value.is_text()) {
    const CodePoints points(value.bytes());
    RETURN_IF_ERROR(budget.Items(4 * points.values.size()));
    for (size_t i = 0; i < points.values.size(); ++i) {
      const size_t begin = points.offsets[i];
      items.emplace_back(value.text().Substr(begin, points.offsets[i + 1] - begin));
    }
    return items;
  }
  return InvalidArgument("'" + std::string(value.TypeName()) + "' object is not iterable");
}

absl::StatusOr<int64_t> LengthOf(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_text()) return static_cast<int64_t>(CountCodePoints(value.bytes()));
  if (value.is_dict()) return static_cast<int64_t>(value.dict().entries.size());
  if (value.is_sequence() && value.sequence().has_length()) {
    return static_cast<int64_t>(value.sequence().items.size());
  }
  return InvalidArgument("object of type '" + std::string(value.TypeName()) + "' has no len()");
}

}  // namespace sluice::engine::chat
