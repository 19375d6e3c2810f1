#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer/marked_text.h"

namespace sluice::engine::chat {

// What Python's str says of a code point.
bool IsSpace(char32_t code_point);
bool IsAlpha(char32_t code_point);
bool IsDecimal(char32_t code_point);
bool IsDigit(char32_t code_point);
bool IsNumeric(char32_t code_point);
bool IsUpper(char32_t code_point);
bool IsLower(char32_t code_point);
bool IsTitle(char32_t code_point);
bool IsPrintable(char32_t code_point);

// A text as its code points. `offsets` has one more: the size of the text. `text` is valid UTF-8.
struct CodePoints {
  explicit CodePoints(std::string_view text);
  std::vector<char32_t> values;
  std::vector<size_t> offsets;  // in bytes
};
size_t CountCodePoints(std::string_view text);
// Without white space at its ends.
std::string_view StripRight(std::string_view text);

enum class Case { kUpper, kLower, kTitle, kCapitalize, kSwap };
// As Python's str.upper, lower, title, capitalize and swapcase; marks stay with their code points.
MarkedText ChangeCase(const MarkedText& text, Case to);

}  // namespace sluice::engine::chat
