#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "engine/base/ids.h"
#include "engine/tokenizer/tokenizer.h"

namespace sluice::engine {

// Token ids to text, one at a time, giving out whole UTF-8 code points only: bytes of an unfinished
// code point wait for the next token, bytes that can never become one turn into U+FFFD (one a
// maximal subpart, as Unicode 15 section 3.9 recommends and Hugging Face does). One a sequence; not
// thread-safe.
class Detokenizer {
 public:
  // `skip_special`: control tokens give no text. `continues_text`: the output follows a prompt, so
  // a leading space is kept.
  Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special, bool continues_text);

  // Appends the text that becomes final with `id` to `out`.
  void Append(TokenId id, std::string& out);
  // At the end of the sequence: what is left of an unfinished code point, as U+FFFD.
  void Finish(std::string& out);

  // Bytes of an unfinished code point: a new one with `continues_text` that begins with them goes
  // on as this one would.
  const std::string& unfinished() const { return pending_; }
  void Restore(std::string unfinished) { pending_ = std::move(unfinished); }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_;
  bool at_start_;
  std::string pending_;  // at most 3 bytes of an unfinished code point
};

}  // namespace sluice::engine
