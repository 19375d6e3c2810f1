#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace sluice::engine::chat {

struct Token {
  enum class Kind : uint8_t {
    kData,           // text between tags
    kVariableBegin,  // {{
    kVariableEnd,
    kBlockBegin,  // {%
    kBlockEnd,
    kName,
    kString,  // escapes resolved
    kInteger,
    kFloat,
    kOperator,
    kEnd,  // of the template
  };
  Kind kind;
  std::string text;
  int line;

  bool Is(Kind wanted, std::string_view wanted_text) const {
    return kind == wanted && text == wanted_text;
  }
  bool IsName(std::string_view name) const { return Is(Kind::kName, name); }
  bool IsOperator(std::string_view name) const { return Is(Kind::kOperator, name); }
};

// Cuts a template into tokens, the last of which is kEnd, as Jinja 3 does with trim_blocks and
// lstrip_blocks: the first newline after a block is dropped, and blanks between the start of a line
// and a block. One newline at the end of the template is dropped. `source` is valid UTF-8.
// INVALID_ARGUMENT with the line of what cannot be a token.
absl::StatusOr<std::vector<Token>> CutIntoTokens(std::string_view source);

}  // namespace sluice::engine::chat
