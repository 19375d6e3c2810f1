#include "engine/chat/lexer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "engine/base/status.h"
#include "engine/chat/unicode.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine::chat {
namespace {

// "\r\n" and "\r" are newlines too.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool IsDigitByte(char c) { return c >= '0' && c <= '9'; }
bool IsNameByte(char c) {
  return IsDigitByte(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<uint8_t>(c) >= 0x80;
}
int HexDigit(char c) {
  if (IsDigitByte(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) RETURN_IF_ERROR(TextAndTag());
    Add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  using Kind = Token::Kind;

  absl::Status Error(std::string_view what) const {
    return InvalidArgument("line " + std::to_string(line_) + ": " + std::string(what));
  }
  void Add(Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  bool Has(std::string_view text) const { return source_.substr(at_).starts_with(text); }
  char Peek(size_t ahead = 0) const {
    return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0';
  }
  void Advance(size_t count) {
    line_ +=
        static_cast<int>(std::count(source_.begin() + at_, source_.begin() + at_ + count, '\n'));
    at_ += count;
  }
  void SkipSpace() {
    while (at_ < source_.size()) {
      const Utf8Step step = NextUtf8(source_.substr(at_));
      if (!IsSpace(step.code_point)) return;
      Advance(step.length);
    }
  }
  size_t FindTag(size_t from) const {
    for (size_t at = from;; ++at) {
      at = source_.find('{', at);
      if (at == std::string_view::npos || at + 1 >= source_.size()) return source_.size();
      const char next = source_[at + 1];
      if (next == '{' || next == '%' || next == '#') return at;
    }
  }
  // The sign after a tag's opening, which is skipped; 0: none.
  char TakeSign() {
    const char sign = Peek();
    if (sign != '-' && sign != '+') return 0;
    Advance(1);
    return sign;
  }

  // Adds the text in [begin, end) that stands before a tag.
  void AddText(size_t begin, size_t end, char sign, bool is_variable, bool line_starts, int line) {
    std::string_view text = source_.substr(begin, end - begin);
    if (sign == '-') {
      text = StripRight(text);
    } else if (sign != '+' && !is_variable) {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line_begin > 0 || line_starts) && StripRight(text.substr(line_begin)).empty()) {
        text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) tokens_.push_back({Kind::kData, std::string(text), line});
  }

  // The text up to the next tag, and the tag.
  absl::Status TextAndTag() {
    const size_t begin = at_;
    const bool line_starts = line_starts_;
    const int line = line_;
    const size_t tag = FindTag(at_);
    Advance(tag - at_);
    if (tag == source_.size()) {
      AddText(begin, tag, '+', true, line_starts, line);
      return absl::OkStatus();
    }
    const char type = source_[tag + 1];
    Advance(2);
    const char sign = TakeSign();
    AddText(begin, tag, sign, type == '{', line_starts, line);
    line_starts_ = false;
    if (type == '#') return Comment();
    if (type == '%') {
      if (const size_t size = RawTagSize("raw", false); size > 0) return Raw(size);
    }
    Add(type == '{' ? Kind::kVariableBegin : Kind::kBlockBegin, "");
    return Tag(type == '{');
  }

  absl::Status Comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string_view::npos) return Error("a comment is not closed by '#}'");
    const char sign =
        end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+') ? source_[end - 1] : '\0';
    Advance(end + 2 - at_);
    AfterBlock(sign);
    return absl::OkStatus();
  }

  // White space after the end of a block or comment, whose sign is given.
  void AfterBlock(char sign) {
    const size_t begin = at_;
    if (sign == '-') {
      SkipSpace();
    } else if (sign != '+' && Peek() == '\n') {
      Advance(1);
    }
    line_starts_ = at_ > begin && source_[at_ - 1] == '\n';
  }

  // Size of `raw` or `endraw` and the end of its block from here on; 0: it is another block.
  size_t RawTagSize(std::string_view word, bool allows_plus) const {
    size_t at = at_;
    const auto skip = [&] {
      while (at < source_.size() && IsSpace(static_cast<uint8_t>(source_[at]))) ++at;
    };
    skip();
    if (!source_.substr(at).starts_with(word)) return 0;
    at += word.size();
    skip();
    if (at < source_.size() && (source_[at] == '-' || (allows_plus && source_[at] == '+'))) ++at;
    return source_.substr(at).starts_with("%}") ? at + 2 - at_ : 0;
  }

  absl::Status Raw(size_t size) {
    Advance(size);
    if (source_[at_ - 3] == '-') SkipSpace();
    const size_t begin = at_;
    const int line = line_;
    while (true) {
      const size_t tag = source_.find("{%", at_);
      if (tag == std::string_view::npos)
        return Error("a raw block is not closed by '{% endraw %}'");
      Advance(tag + 2 - at_);
      const char sign = TakeSign();
      const size_t end_size = RawTagSize("endraw", true);
      if (end_size == 0) continue;
      AddText(begin, tag, sign, false, line_starts_, line);
      Advance(end_size);
      AfterBlock(source_[at_ - 3]);
      return absl::OkStatus();
    }
  }

  // The tokens of a tag and its end.
  absl::Status Tag(bool is_variable) {
    open_brackets_.clear();
    while (at_ < source_.size()) {
      if (open_brackets_.empty() && TakeTagEnd(is_variable)) return absl::OkStatus();
      const Utf8Step step = NextUtf8(source_.substr(at_));
      if (IsSpace(step.code_point)) {
        Advance(step.length);
      } else if (IsDigitByte(Peek())) {
        RETURN_IF_ERROR(Number());
      } else if (IsNameByte(Peek())) {
        size_t size = 0;
        while (IsNameByte(Peek(size))) ++size;
        Add(Kind::kName, std::string(source_.substr(at_, size)));
        Advance(size);
      } else if (Peek() == '"' || Peek() == '\'') {
        RETURN_IF_ERROR(String());
      } else {
        RETURN_IF_ERROR(OperatorToken());
      }
    }
    return Error(std::string("the template ends within a tag; expected '") +
                 (is_variable ? "}}'" : "%}'"));
  }

  bool TakeTagEnd(bool is_variable) {
    const std::string_view end = is_variable ? "}}" : "%}";
    const bool has_sign = Peek() == '-' || (Peek() == '+' && !is_variable);
    const char sign = has_sign ? Peek() : '\0';
    if (!source_.substr(at_ + (has_sign ? 1 : 0)).starts_with(end)) return false;
    Add(is_variable ? Kind::kVariableEnd : Kind::kBlockEnd, "");
    Advance(has_sign ? 3 : 2);
    if (!is_variable) {
      AfterBlock(sign);
    } else if (sign == '-') {
      const size_t begin = at_;
      SkipSpace();
      line_starts_ = at_ > begin && source_[at_ - 1] == '\n';
    }
    return true;
  }

  // Digits with single underscores between them; the size.
  size_t Digits(size_t from, bool (*is_digit)(char)) const {
    size_t size = 0;
    while (is_digit(Peek(from + size)) ||
           (size > 0 && Peek(from + size) == '_' && is_digit(Peek(from + size + 1)))) {
      ++size;
    }
    return size;
  }

  absl::Status Number() {
    size_t size = Digits(0, IsDigitByte);
    Kind kind = Kind::kInteger;
    if (const size_t prefixed = PrefixedSize(); prefixed > 0) {
      size = prefixed;
    } else if (at_ == 0 || source_[at_ - 1] != '.') {  // in `a.0.1` the numbers are indices
      if (Peek(size) == '.' && IsDigitByte(Peek(size + 1))) {
        size += 1 + Digits(size + 1, IsDigitByte);
        kind = Kind::kFloat;
      }
      if (Peek(size) == 'e' || Peek(size) == 'E') {
        const size_t sign = Peek(size + 1) == '+' || Peek(size + 1) == '-' ? 1 : 0;
        if (const size_t digits = Digits(size + 1 + sign, IsDigitByte); digits > 0) {
          size += 1 + sign + digits;
          kind = Kind::kFloat;
        }
      }
    }
    std::string text(source_.substr(at_, size));
    std::erase(text, '_');
    Add(kind, std::move(text));
    Advance(size);
    return absl::OkStatus();
  }
  // Size of 0x1F, 0o17 or 0b11; 0: it is none of them.
  size_t PrefixedSize() const {
    if (Peek() != '0') return 0;
    bool (*is_digit)(char) = nullptr;
    const auto letter = static_cast<char>(Peek(1) | 0x20);
    if (letter == 'x') is_digit = [](char c) { return HexDigit(c) >= 0; };
    if (letter == 'o') is_digit = [](char c) { return c >= '0' && c <= '7'; };
    if (letter == 'b') is_digit = [](char c) { return c == '0' || c == '1'; };
    if (is_digit == nullptr) return 0;
    const size_t start = Peek(2) == '_' ? 3 : 2;
    const size_t digits = Digits(start, is_digit);
    return digits > 0 ? start + digits : 0;
  }

  absl::Status String() {
    const char quote = Peek();
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) return Error("a string is not closed");
    std::string value;
    for (size_t i = at_ + 1; i < end;) {
      if (source_[i] != '\\') {
        value += source_[i++];
      } else {
        RETURN_IF_ERROR(Escape(i, end, value));
      }
    }
    Add(Kind::kString, std::move(value));
    Advance(end + 1 - at_);
    return absl::OkStatus();
  }

  // Appends what the escape at `i`, a backslash, stands for and goes past it. As in Python.
  absl::Status Escape(size_t& i, size_t end, std::string& out) const {
    static constexpr std::string_view kLetters = "abfnrtv\\'\"";
    static constexpr std::string_view kValues = "\a\b\f\n\r\t\v\\'\"";
    const char letter = source_[i + 1];
    if (const size_t known = kLetters.find(letter); known != std::string_view::npos) {
      out += kValues[known];
      i += 2;
      return absl::OkStatus();
    }
    if (letter == '\n') {
      i += 2;
      return absl::OkStatus();
    }
    char32_t code = 0;
    if (letter >= '0' && letter <= '7') {
      size_t size = 1;
      while (size < 4 && i + size < end && source_[i + size] >= '0' && source_[i + size] <= '7') {
        code = code * 8 + static_cast<char32_t>(source_[i + size] - '0');
        ++size;
      }
      i += size;
      AppendUtf8(code, out);
      return absl::OkStatus();
    }
    const size_t digits = letter == 'x' ? 2 : letter == 'u' ? 4 : letter == 'U' ? 8 : 0;
    if (digits == 0) {
      if (letter == 'N') return Error("escapes of names, \\N{...}, are not supported");
      out += '\\';
      ++i;
      return absl::OkStatus();
    }
    for (size_t k = 0; k < digits; ++k) {
      const int digit = i + 2 + k < end ? HexDigit(source_[i + 2 + k]) : -1;
      if (digit < 0) return Error("an escape in a string lacks hex digits");
      code = code * 16 + static_cast<char32_t>(digit);
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
      return Error("an escape in a string is no character");
    }
    i += 2 + digits;
    AppendUtf8(code, out);
    return absl::OkStatus();
  }

  absl::Status OperatorToken() {
    static constexpr std::array<std::string_view, 26> kOperators = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (const std::string_view name : kOperators) {
      if (!Has(name)) continue;
      RETURN_IF_ERROR(Balance(name[0]));
      Add(Kind::kOperator, std::string(name));
      Advance(name.size());
      return absl::OkStatus();
    }
    return Error("unexpected character");
  }

  absl::Status Balance(char bracket) {
    static constexpr std::string_view kOpen = "([{", kClose = ")]}";
    if (kOpen.find(bracket) != std::string_view::npos) open_brackets_ += bracket;
    const size_t closing = kClose.find(bracket);
    if (closing == std::string_view::npos) return absl::OkStatus();
    if (open_brackets_.empty()) return Error(std::string("unexpected '") + bracket + "'");
    const char open = open_brackets_.back();
    open_brackets_.pop_back();
    if (open == kOpen[closing]) return absl::OkStatus();
    return Error(std::string("'") + open + "' is closed by '" + bracket + "'");
  }

  const std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starts_ = true;    // what comes is at the start of a line
  std::string open_brackets_;  // of the current tag
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> CutIntoTokens(std::string_view source) {
  const std::string normalized = NormalizeNewlines(source);
  return Lexer(normalized).Run();
}

}  // namespace sluice::engine::chat
