#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace sluice::engine {

enum class Utf8State : uint8_t {
  kValid,       // a code point
  kInvalid,     // bytes that no continuation can repair
  kIncomplete,  // the text ends inside what could still become a code point
};

// One step through UTF-8 text. `length` is that of the code point, or of the maximal subpart of an
// ill-formed sequence (Unicode 15, section 3.9, table 3-8): at least 1, at most 4.
struct Utf8Step {
  char32_t code_point;
  uint32_t length;
  Utf8State state;
};

// The step at the start of `text`, which is not empty. Surrogates, overlong forms and code points
// above U+10FFFF are invalid.
Utf8Step NextUtf8(std::string_view text);

// Offset of the first byte that begins no whole code point; npos when `text` is valid UTF-8.
size_t FindInvalidUtf8(std::string_view text);

// INVALID_ARGUMENT naming that byte.
absl::Status CheckUtf8(std::string_view text);

// False for characters that do more to a line than stand in it: controls, separators of lines and
// paragraphs, and those of format, which turn its direction or are not seen (Unicode 15, general
// categories Cc, Zl, Zp and Cf).
bool IsPrintableCodePoint(char32_t code_point);

// True when `text` is UTF-8 of printable code points alone: fit for one line of a terminal or a
// log.
bool IsPrintableUtf8(std::string_view text);

// `code_point` must be a Unicode scalar value.
void AppendUtf8(char32_t code_point, std::string& out);

}  // namespace sluice::engine
