#include "engine/chat/unicode.h"

#include <utf8proc.h>

#include "engine/tokenizer/utf8.h"

namespace sluice::engine::chat {
namespace {

utf8proc_category_t Category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

bool IsCased(char32_t c) { return IsUpper(c) || IsLower(c) || IsTitle(c); }

// Appends the upper, lower or title case of one code point. Of the code points whose case is
// several only those that text has are known: the sharp s and Latin ligatures.
void AppendCase(char32_t c, Case to, std::string& out) {
  static constexpr std::pair<char32_t, const char*> kUpper[] = {
      {0xDF, "SS"},    {0xFB00, "FF"},  {0xFB01, "FI"}, {0xFB02, "FL"},
      {0xFB03, "FFI"}, {0xFB04, "FFL"}, {0xFB06, "ST"}, {0x149, "\xCA\xBCN"}};
  static constexpr std::pair<char32_t, const char*> kTitle[] = {
      {0xDF, "Ss"},    {0xFB00, "Ff"},  {0xFB01, "Fi"}, {0xFB02, "Fl"},
      {0xFB03, "Ffi"}, {0xFB04, "Ffl"}, {0xFB06, "St"}, {0x149, "\xCA\xBCN"}};
  if (to == Case::kUpper || to == Case::kTitle) {
    for (const auto& [from, text] : to == Case::kUpper ? kUpper : kTitle) {
      if (c == from) {
        out += text;
        return;
      }
    }
  }
  if (to == Case::kLower && c == 0x130) {
    out += "i\xCC\x87";
    return;
  }
  const auto code = static_cast<utf8proc_int32_t>(c);
  AppendUtf8(static_cast<char32_t>(to == Case::kUpper   ? utf8proc_toupper(code)
                                   : to == Case::kTitle ? utf8proc_totitle(code)
                                                        : utf8proc_tolower(code)),
             out);
}

// A capital sigma at the end of a word has a lower case of its own.
bool IsFinalSigma(const CodePoints& points, size_t index) {
  const auto ignorable = [](char32_t c) {
    const utf8proc_category_t category = Category(c);
    return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_ME ||
           category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_LM ||
           category == UTF8PROC_CATEGORY_SK || c == '\'' || c == '.' || c == ':' || c == 0xB7 ||
           c == 0x2019;
  };
  size_t before = index;
  while (before > 0 && ignorable(points.values[before - 1])) --before;
  if (before == 0 || !IsCased(points.values[before - 1])) return false;
  size_t after = index + 1;
  while (after < points.values.size() && ignorable(points.values[after])) ++after;
  return after == points.values.size() || !IsCased(points.values[after]);
}

}  // namespace

bool IsSpace(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool IsAlpha(char32_t c) {
  const utf8proc_category_t category = Category(c);
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
         category == UTF8PROC_CATEGORY_LT || category == UTF8PROC_CATEGORY_LM ||
         category == UTF8PROC_CATEGORY_LO;
}

bool IsDecimal(char32_t c) { return Category(c) == UTF8PROC_CATEGORY_ND; }

bool IsDigit(char32_t c) {
  return IsDecimal(c) || c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) ||
         (c >= 0x2460 && c <= 0x2468) || (c >= 0x2474 && c <= 0x247C) ||
         (c >= 0x2488 && c <= 0x2490) || c == 0x24EA || (c >= 0x24F5 && c <= 0x24FD) ||
         c == 0x24FF || (c >= 0x2776 && c <= 0x277E) || (c >= 0x2780 && c <= 0x2788) ||
         (c >= 0x278A && c <= 0x2792);
}

bool IsNumeric(char32_t c) {
  const utf8proc_category_t category = Category(c);
  return IsDigit(c) || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO;
}

bool IsUpper(char32_t c) {
  return Category(c) == UTF8PROC_CATEGORY_LU || (c >= 0x2160 && c <= 0x216F) ||
         (c >= 0x24B6 && c <= 0x24CF);
}
bool IsLower(char32_t c) {
  return Category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA ||
         (c >= 0x2170 && c <= 0x217F) || (c >= 0x24D0 && c <= 0x24E9);
}
bool IsTitle(char32_t c) { return Category(c) == UTF8PROC_CATEGORY_LT; }

bool IsPrintable(char32_t c) {
  if (c == ' ') return true;
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

CodePoints::CodePoints(std::string_view text) {
  values.reserve(text.size());
  offsets.reserve(text.size() + 1);
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(at));
    values.push_back(step.code_point);
    offsets.push_back(at);
    at += step.length;
  }
  offsets.push_back(text.size());
}

size_t CountCodePoints(std::string_view text) {
  size_t count = 0;
  for (const char byte : text) count += (static_cast<uint8_t>(byte) & 0xC0) != 0x80;
  return count;
}

std::string_view StripRight(std::string_view text) {
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    if (!IsSpace(NextUtf8(text.substr(begin)).code_point)) break;
    text = text.substr(0, begin);
  }
  return text;
}

MarkedText ChangeCase(const MarkedText& text, Case to) {
  const CodePoints points(text.bytes());
  MarkedText out;
  bool in_word = false;
  for (size_t i = 0; i < points.values.size(); ++i) {
    const char32_t c = points.values[i];
    Case here = to;
    if (to == Case::kTitle) here = in_word ? Case::kLower : Case::kTitle;
    if (to == Case::kCapitalize) here = i == 0 ? Case::kTitle : Case::kLower;
    if (to == Case::kSwap) here = IsUpper(c) ? Case::kLower : Case::kUpper;
    in_word = IsCased(c);
    std::string changed;
    if (here == Case::kLower && c == 0x3A3) {
      AppendUtf8(IsFinalSigma(points, i) ? 0x3C2 : 0x3C3, changed);
    } else {
      AppendCase(c, here, changed);
    }
    out.Append(changed, text.MarkAt(points.offsets[i]));
  }
  return out;
}

}  // namespace sluice::engine::chat
