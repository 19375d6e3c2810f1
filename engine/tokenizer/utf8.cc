#include "engine/tokenizer/utf8.h"

#include <utf8proc.h>

#include <cstring>

#include "engine/base/status.h"

namespace sluice::engine {
namespace {

// What the bytes after a lead byte must look like (Unicode 15, table 3-7). Only the second byte has
// a range of its own; it is where overlong forms, surrogates and values too high are caught.
struct LeadByte {
  uint32_t length;  // 0: no lead byte
  uint8_t second_low;
  uint8_t second_high;
};

LeadByte ClassifyLead(uint8_t byte) {
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Step NextUtf8(std::string_view text) {
  const auto first = static_cast<uint8_t>(text[0]);
  if (first < 0x80) return {first, 1, Utf8State::kValid};
  const LeadByte lead = ClassifyLead(first);
  if (lead.length == 0) return {0, 1, Utf8State::kInvalid};
  char32_t code_point = first & (0x7F >> lead.length);
  for (uint32_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {0, i, Utf8State::kIncomplete};
    const auto byte = static_cast<uint8_t>(text[i]);
    const uint8_t low = i == 1 ? lead.second_low : 0x80;
    const uint8_t high = i == 1 ? lead.second_high : 0xBF;
    if (byte < low || byte > high) return {0, i, Utf8State::kInvalid};
    code_point = code_point << 6 | (byte & 0x3F);
  }
  return {code_point, lead.length, Utf8State::kValid};
}

size_t FindInvalidUtf8(std::string_view text) {
  size_t offset = 0;
  while (offset < text.size()) {
    // Most text is ASCII: eight bytes at a time.
    uint64_t word;
    if (text.size() - offset >= sizeof(word)) {
      std::memcpy(&word, text.data() + offset, sizeof(word));
      if ((word & 0x8080808080808080) == 0) {
        offset += sizeof(word);
        continue;
      }
    }
    const Utf8Step step = NextUtf8(text.substr(offset));
    if (step.state != Utf8State::kValid) return offset;
    offset += step.length;
  }
  return std::string_view::npos;
}

absl::Status CheckUtf8(std::string_view text) {
  const size_t at = FindInvalidUtf8(text);
  if (at == std::string_view::npos) return absl::OkStatus();
  return InvalidArgument("expected UTF-8, but the text is wrong from byte " + std::to_string(at));
}

bool IsPrintableCodePoint(char32_t code_point) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

bool IsPrintableUtf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    if (step.state != Utf8State::kValid || !IsPrintableCodePoint(step.code_point)) return false;
    text.remove_prefix(step.length);
  }
  return true;
}

void AppendUtf8(char32_t code_point, std::string& out) {
  const auto tail = [code_point](int shift) {
    return static_cast<char>(0x80 | (code_point >> shift & 0x3F));
  };
  if (code_point < 0x80) {
    out += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    out += static_cast<char>(0xC0 | code_point >> 6);
    out += tail(0);
  } else if (code_point < 0x10000) {
    out += static_cast<char>(0xE0 | code_point >> 12);
    out += tail(6);
    out += tail(0);
  } else {
    out += static_cast<char>(0xF0 | code_point >> 18);
    out += tail(12);
    out += tail(6);
    out += tail(0);
  }
}

}  // namespace sluice::engine
