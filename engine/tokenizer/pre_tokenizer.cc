#include "engine/tokenizer/pre_tokenizer.h"

#include <cstdint>
#include <string>
#include <utility>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine {

// Has a name for the linker, as PreTokenizer::Pattern has, which owns one.
template <auto kFree>
struct PcreDeleter {
  template <typename T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};

namespace {

constexpr size_t kJitStackStartBytes = size_t{64} << 10;
constexpr size_t kJitStackMaxBytes = size_t{32} << 20;

using Code = std::unique_ptr<pcre2_code, PcreDeleter<pcre2_code_free>>;
using MatchRecord = std::unique_ptr<pcre2_match_data, PcreDeleter<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, PcreDeleter<pcre2_match_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, PcreDeleter<pcre2_jit_stack_free>>;

std::string PcreMessage(int error) {
  PCRE2_UCHAR message[256];
  pcre2_get_error_message(error, message, sizeof(message));
  return reinterpret_cast<const char*>(message);
}

// One pattern at work on one text: what a match needs and must not be shared between threads.
class Matcher {
 public:
  explicit Matcher(const pcre2_code* code)
      : code_(code),
        record_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)) {
    // The interpreter counts steps; a long run of spaces alone passes its default limit.
    pcre2_set_match_limit(context_.get(), UINT32_MAX);
    pcre2_set_heap_limit(context_.get(), UINT32_MAX);
  }

  struct Range {
    size_t begin;
    size_t end;
  };

  // The first match at or after `start`; an empty range at the text's end when there is none.
  absl::StatusOr<Range> Next(std::string_view text, size_t start) {
    int matched = Match(text, start, 0);
    if (matched == PCRE2_ERROR_JIT_STACKLIMIT && stack_ == nullptr) {
      // The 32 KiB of machine stack that JIT code uses unasked are enough for nearly every text.
      stack_.reset(pcre2_jit_stack_create(kJitStackStartBytes, kJitStackMaxBytes, nullptr));
      pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
      matched = Match(text, start, 0);
    }
    if (matched == PCRE2_ERROR_JIT_STACKLIMIT) matched = Match(text, start, PCRE2_NO_JIT);
    if (matched == PCRE2_ERROR_NOMATCH) return Range{text.size(), text.size()};
    if (matched < 0) return Internal("cutting text into words: " + PcreMessage(matched));
    const size_t* offsets = pcre2_get_ovector_pointer(record_.get());
    return Range{offsets[0], offsets[1]};
  }

 private:
  int Match(std::string_view text, size_t start, uint32_t options) {
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                       options | PCRE2_NO_UTF_CHECK, record_.get(), context_.get());
  }

  const pcre2_code* code_;
  MatchRecord record_;
  MatchContext context_;
  JitStack stack_;
};

bool IsOneCodePoint(std::string_view text) { return NextUtf8(text).length == text.size(); }

bool IsAsciiDigit(char byte) { return byte >= '0' && byte <= '9'; }

// Bytes that the byte-level alphabet spells with a digit of Unicode: ASCII's, and those that stand
// for the superscripts and fractions of Latin-1, in whatever character they are.
bool IsDigitOfAlphabet(char byte) {
  const auto code = static_cast<uint8_t>(byte);
  return IsAsciiDigit(byte) || code == 0xB2 || code == 0xB3 || code == 0xB9 ||
         (code >= 0xBC && code <= 0xBE);
}

// Falcon's last two steps come after its text has become the byte-level alphabet: runs of digits
// are cut out, and in every run the groups of three ASCII digits.
void CutDigitsOfAlphabet(std::string_view text, std::vector<std::string_view>& pieces) {
  for (size_t begin = 0; begin < text.size();) {
    const bool is_digits = IsDigitOfAlphabet(text[begin]);
    size_t end = begin + 1;
    while (end < text.size() && IsDigitOfAlphabet(text[end]) == is_digits) ++end;
    size_t rest = begin;
    for (size_t i = begin; is_digits && i + 3 <= end;) {
      if (!IsAsciiDigit(text[i]) || !IsAsciiDigit(text[i + 1]) || !IsAsciiDigit(text[i + 2])) {
        ++i;
        continue;
      }
      if (i > rest) pieces.push_back(text.substr(rest, i - rest));
      pieces.push_back(text.substr(i, 3));
      i += 3;
      rest = i;
    }
    if (rest < end) pieces.push_back(text.substr(rest, end - rest));
    begin = end;
  }
}

}  // namespace

class PreTokenizer::Pattern {
 public:
  static absl::StatusOr<std::unique_ptr<const Pattern>> Compile(std::string_view expression) {
    int error = 0;
    size_t offset = 0;
    Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                            PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr));
    if (code == nullptr) {
      return Internal("regular expression " + Quoted(expression) + " at " + std::to_string(offset) +
                      ": " + PcreMessage(error));
    }
    // Where PCRE2 has no JIT for the processor, matching interprets the pattern: slower, the same.
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
    return std::unique_ptr<const Pattern>(new Pattern(std::move(code)));
  }

  // Matches and what lies between them, of every one of `texts`, in order.
  absl::Status Split(const std::vector<std::string_view>& texts,
                     std::vector<std::string_view>& pieces) const {
    Matcher matcher(code_.get());
    for (const std::string_view text : texts) {
      if (IsOneCodePoint(text)) {  // no cut to look for, and lines of newlines give many
        pieces.push_back(text);
        continue;
      }
      size_t start = 0;
      while (start < text.size()) {
        ASSIGN_OR_RETURN(const Matcher::Range range, matcher.Next(text, start));
        if (range.begin > start) pieces.push_back(text.substr(start, range.begin - start));
        if (range.end > range.begin) {
          pieces.push_back(text.substr(range.begin, range.end - range.begin));
        }
        start = range.end;
      }
    }
    return absl::OkStatus();
  }

 private:
  explicit Pattern(Code code) : code_(std::move(code)) {}

  Code code_;
};

PreTokenizer::PreTokenizer(const PreTokenizerRules& rules) : rules_(rules) {}

PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<std::unique_ptr<const PreTokenizer>> PreTokenizer::Create(std::string_view pre) {
  std::string known;
  for (const PreTokenizerRules& rules : KnownPreTokenizerRules()) {
    known += (known.empty() ? "" : ", ") + std::string(rules.name);
    if (rules.name != pre) continue;
    std::unique_ptr<PreTokenizer> created(new PreTokenizer(rules));
    for (const std::string_view expression : rules.patterns) {
      if (expression.empty()) continue;
      ASSIGN_OR_RETURN(auto pattern, Pattern::Compile(expression));
      created->patterns_.push_back(std::move(pattern));
    }
    return std::unique_ptr<const PreTokenizer>(std::move(created));
  }
  return Unimplemented("expected one of " + known + ", got " + Quoted(pre));
}

absl::Status PreTokenizer::Split(std::string_view text,
                                 std::vector<std::string_view>& pieces) const {
  pieces.assign(1, text);
  std::vector<std::string_view> cut;
  for (const auto& pattern : patterns_) {
    cut.clear();
    RETURN_IF_ERROR(pattern->Split(pieces, cut));
    pieces.swap(cut);
  }
  if (!rules_.cuts_digits_of_alphabet) return absl::OkStatus();
  cut.clear();
  for (const std::string_view piece : pieces) CutDigitsOfAlphabet(piece, cut);
  pieces.swap(cut);
  return absl::OkStatus();
}

}  // namespace sluice::engine
