#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/chat/value.h"

namespace sluice::engine::chat {

// A `for` that runs, and its variable `loop`. The condition of the loop is asked as late as can be:
// it may depend on what the body did. Not thread-safe.
class LoopState {
 public:
  // Whether an item takes part in the loop.
  using Condition = std::function<absl::StatusOr<bool>(const Value& item)>;

  // `condition` may be null.
  LoopState(std::vector<Value> items, Condition condition);

  // Goes to the next item; false after the last.
  absl::StatusOr<bool> Advance();
  const Value& item() const { return *current_; }
  // `loop.name`; nothing when there is no such attribute. Not for cycle and changed.
  absl::StatusOr<std::optional<Value>> Attribute(std::string_view name);
  size_t index0() const { return index0_; }
  // Whether `values` differ from those of the last call.
  bool Changed(const std::vector<Value>& values);
  // Lets go of everything: the loop is over, and its items may hold it.
  void Close();

 private:
  // Looks for the item after the current one, unless it is known.
  absl::Status Peek();
  absl::StatusOr<int64_t> Length();

  std::vector<Value> items_;
  Condition condition_;
  size_t next_ = 0;  // in items_
  bool started_ = false;
  size_t index0_ = 0;
  std::optional<Value> previous_, current_, following_;
  std::optional<std::vector<Value>> last_changed_;
};

}  // namespace sluice::engine::chat
