#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

#include "engine/chat/limits.h"
#include "engine/chat/value.h"

namespace sluice::engine::chat {

// How Python's json.dumps writes.
struct JsonStyle {
  bool ascii_only = false;
  std::optional<std::string> indent;  // of one level
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sorts_keys = false;
};

// INVALID_ARGUMENT for what is not JSON: undefined values, functions, keys of other types.
absl::StatusOr<MarkedText> ToJson(const Value& value, const JsonStyle& style, Budget& budget);

// A JSON text as a value; strings are content. INVALID_ARGUMENT when it is none, has numbers beyond
// 64 bits or is nested deeper than `max_depth`.
absl::StatusOr<Value> FromJson(std::string_view text, int max_depth);

}  // namespace sluice::engine::chat
