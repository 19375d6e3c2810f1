#pragma once

#include "absl/status/statusor.h"

#include "engine/chat/callable.h"
#include "engine/tokenizer/marked_text.h"

namespace sluice::engine::chat {

// format.format(...) of Python: {}, {0}, {name}, {0.name} and {name[key]}, !r and !s, {{ and }}; a
// format specification after ':' is UNIMPLEMENTED.
absl::StatusOr<MarkedText> FormatBraces(const MarkedText& format, const Arguments& arguments,
                                        Interpreter& interpreter);

}  // namespace sluice::engine::chat
