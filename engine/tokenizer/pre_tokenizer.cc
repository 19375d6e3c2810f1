#include "engine/tokenizer/pre_tokenizer.h"

#include <cstdint>
#include <string>
#include <utility>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

// The families' own expressions, with \p{White_Space} for \s: PCRE2's \s holds U+180E too, which
// lost that property in Unicode 6.3 and which Hugging Face's regular expressions take for no space.
constexpr std::string_view kDigit = R"(\p{N})";
constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
    R"(| ?[^\p{White_Space}\p{L}\p{N}]+[\r\n]*|\p{White_Space}*[\r\n]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
    R"(| ?[^\p{White_Space}\p{L}\p{N}]+[\r\n]*|\p{White_Space}*[\r\n]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";

constexpr size_t kJitStackStartBytes = size_t{64} << 10;
constexpr size_t kJitStackMaxBytes = size_t{32} << 20;

template <auto kFree>
struct Deleter {
  template <typename T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};
using Code = std::unique_ptr<pcre2_code, Deleter<pcre2_code_free>>;
using MatchRecord = std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Deleter<pcre2_jit_stack_free>>;

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

std::span<const PreTokenizer::Rules> PreTokenizer::KnownRules() {
  static constexpr Rules kLlama = {"llama-bpe", {kLlama3, ""}, false, true, true};
  static constexpr Rules kKnown[] = {
      {"smollm", {kDigit, kGpt2}, false, false, false},
      {"qwen2", {kQwen2, ""}, true, false, false},
      kLlama,
      {"llama3", kLlama.patterns, false, true, true},
      {"llama-v3", kLlama.patterns, false, true, true},
  };
  return kKnown;
}

PreTokenizer::PreTokenizer(const Rules& rules) : rules_(rules) {}

PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<std::unique_ptr<const PreTokenizer>> PreTokenizer::Create(std::string_view pre) {
  std::string known;
  for (const Rules& rules : KnownRules()) {
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
  return absl::OkStatus();
}

}  // namespace sluice::engine
