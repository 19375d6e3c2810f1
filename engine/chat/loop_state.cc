#include "engine/chat/loop_state.h"

#include <algorithm>
#include <utility>

#include "engine/base/status.h"

namespace sluice::engine::chat {

LoopState::LoopState(std::vector<Value> items, Condition condition)
    : items_(std::move(items)), condition_(std::move(condition)) {}

absl::Status LoopState::Peek() {
  while (!following_ && next_ < items_.size()) {
    const size_t index = next_++;
    if (condition_) {
      ASSIGN_OR_RETURN(const bool takes_part, condition_(items_[index]));
      if (!takes_part) continue;
    }
    following_ = items_[index];
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> LoopState::Advance() {
  RETURN_IF_ERROR(Peek());
  if (!following_) return false;
  if (started_) ++index0_;
  started_ = true;
  previous_ = std::exchange(current_, std::exchange(following_, std::nullopt));
  return true;
}

absl::StatusOr<int64_t> LoopState::Length() {
  RETURN_IF_ERROR(Peek());
  std::vector<Value> rest;
  for (; condition_ && next_ < items_.size(); ++next_) {
    ASSIGN_OR_RETURN(const bool takes_part, condition_(items_[next_]));
    if (takes_part) rest.push_back(items_[next_]);
  }
  if (condition_) {
    // What is left has been asked.
    items_ = std::move(rest);
    next_ = 0;
    condition_ = nullptr;
  }
  const size_t left = items_.size() - next_ + (following_ ? 1 : 0);
  return static_cast<int64_t>(index0_ + 1 + left);
}

absl::StatusOr<std::optional<Value>> LoopState::Attribute(std::string_view name) {
  const auto index = static_cast<int64_t>(index0_);
  if (name == "index0") return Value(index);
  if (name == "index") return Value(index + 1);
  if (name == "first") return Value(index == 0);
  // Of recursive loops only, which there are none of.
  if (name == "depth0") return Value(int64_t{0});
  if (name == "depth") return Value(int64_t{1});
  if (name == "previtem") {
    return previous_ ? *previous_ : Value::MakeUndefined("there is no previous item");
  }
  if (name == "last" || name == "nextitem") {
    RETURN_IF_ERROR(Peek());
    if (name == "last") return Value(!following_.has_value());
    return following_ ? *following_ : Value::MakeUndefined("there is no next item");
  }
  if (name == "length" || name == "revindex" || name == "revindex0") {
    ASSIGN_OR_RETURN(const int64_t length, Length());
    if (name == "length") return Value(length);
    return Value(name == "revindex" ? length - index : length - index - 1);
  }
  return std::optional<Value>();
}

bool LoopState::Changed(const std::vector<Value>& values) {
  const bool same = last_changed_ && last_changed_->size() == values.size() &&
                    std::equal(values.begin(), values.end(), last_changed_->begin(), AreEqual);
  if (!same) last_changed_ = values;
  return !same;
}

void LoopState::Close() {
  items_.clear();
  next_ = 0;
  condition_ = nullptr;
  previous_.reset();
  current_.reset();
  following_.reset();
  last_changed_.reset();
}

}  // namespace sluice::engine::chat
