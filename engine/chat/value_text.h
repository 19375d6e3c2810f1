#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

#include "engine/chat/limits.h"
#include "engine/chat/value.h"

namespace sluice::engine::chat {

// str(value), as `{{ value }}` renders it. Whatever is not part of a string is content.
absl::StatusOr<MarkedText> ToText(const Value& value, Budget& budget);
// repr(value).
absl::StatusOr<MarkedText> ToRepr(const Value& value, Budget& budget);
// repr of a float: the shortest digits that give it back, "1e+16" from there on.
std::string FloatText(double value);

}  // namespace sluice::engine::chat
