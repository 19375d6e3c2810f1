#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"

#include "engine/base/status.h"

namespace sluice::engine::chat {

// What a template may cost. A template comes with a model file, so it is trusted no more than that;
// the defaults leave well-known templates two orders of magnitude of room with a conversation of
// 4 MiB.
struct Limits {
  size_t max_template_bytes = size_t{1} << 20;
  int max_nesting = 100;        // parentheses, blocks: checked while parsing
  int max_chain = 500;          // a.b.c.d, a + b + c + d: checked while parsing
  int max_depth = 1000;         // expressions, blocks and macros in each other while rendering
  int max_value_depth = 100;    // lists in lists
  int64_t max_range = 100'000;  // items of range(), as in Jinja's sandbox
  uint64_t max_steps = 5'000'000;
  size_t max_text_bytes = size_t{16} << 20;    // the output, and any other text
  size_t max_built_bytes = size_t{512} << 20;  // all texts and containers that were ever made
};

// Counts what a rendering has cost. Not thread-safe: belongs to one rendering.
class Budget {
 public:
  explicit Budget(const Limits& limits) : limits_(limits) {}

  absl::Status Steps(uint64_t count) {
    steps_ += count;
    if (steps_ <= limits_.max_steps) return absl::OkStatus();
    return ResourceExhausted("the template takes more than " + std::to_string(limits_.max_steps) +
                             " steps");
  }
  // A text of `size` bytes is about to be made.
  absl::Status Text(size_t size) { return Text(size, size); }
  // A text of `from` bytes has become one of `to`.
  absl::Status Grow(size_t from, size_t to) {
    return to > from ? Text(to, to - from) : absl::OkStatus();
  }
  // A container of `size` items is about to be made, or gone through.
  absl::Status Items(size_t size) {
    if (absl::Status status = Steps(size / 8); !status.ok()) return status;
    return Build(size * 32);
  }
  const Limits& limits() const { return limits_; }

 private:
  absl::Status Text(size_t size, size_t built) {
    if (size <= limits_.max_text_bytes) return Build(built);
    return ResourceExhausted("the template makes a text of more than " +
                             std::to_string(limits_.max_text_bytes) + " bytes");
  }
  absl::Status Build(size_t size) {
    built_bytes_ += size;
    if (built_bytes_ <= limits_.max_built_bytes) return Steps(size / 256);
    return ResourceExhausted("the template makes more than " +
                             std::to_string(limits_.max_built_bytes) + " bytes of values");
  }

  const Limits limits_;
  uint64_t steps_ = 0;
  size_t built_bytes_ = 0;
};

}  // namespace sluice::engine::chat
