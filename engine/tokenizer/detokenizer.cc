#include "engine/tokenizer/detokenizer.h"

#include <utility>

#include "engine/tokenizer/utf8.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

Detokenizer::Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special,
                         bool continues_text)
    : tokenizer_(std::move(tokenizer)),
      skip_special_(skip_special),
      at_start_(!continues_text && tokenizer_->RemovesLeadingSpace()) {}

void Detokenizer::Append(TokenId id, std::string& out) {
  const TokenType type = tokenizer_->Type(id);
  // A skipped token interrupts nothing: the bytes before and after it may be one code point.
  if (skip_special_ && (type == TokenType::kControl || type == TokenType::kUnknown)) return;
  std::string_view bytes = tokenizer_->TokenBytes(id);
  if (at_start_ && !bytes.empty()) {
    if (bytes.front() == ' ') bytes.remove_prefix(1);
    at_start_ = false;
  }
  std::string joined;
  if (!pending_.empty()) {
    joined = pending_;
    joined += bytes;
    bytes = joined;
    pending_.clear();
  }
  while (!bytes.empty()) {
    const Utf8Step step = NextUtf8(bytes);
    if (step.state == Utf8State::kIncomplete) {
      pending_ = bytes;
      return;
    }
    out += step.state == Utf8State::kValid ? bytes.substr(0, step.length) : kReplacement;
    bytes.remove_prefix(step.length);
  }
}

void Detokenizer::Finish(std::string& out) {
  if (!pending_.empty()) out += kReplacement;
  pending_.clear();
}

}  // namespace sluice::engine
