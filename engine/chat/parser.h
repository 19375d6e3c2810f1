#pragma once

#include <string_view>

#include "absl/status/statusor.h"

#include "engine/chat/limits.h"
#include "engine/chat/syntax_tree.h"

namespace sluice::engine::chat {

// Parses a template in the language of Jinja 3 with its loopcontrols extension and Hugging Face's
// `generation` blocks; not `import`, `include`, `extends`, `block`, `autoescape`, recursive loops.
// INVALID_ARGUMENT, "line 3: expected ..., got ...".
absl::StatusOr<Block> ParseTemplate(std::string_view source, const Limits& limits);

}  // namespace sluice::engine::chat
