#pragma once

#include <ctime>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/ids.h"
#include "engine/chat/chat_template.h"
#include "engine/chat/conversation.h"
#include "engine/tokenizer/tokenizer.h"

namespace sluice::engine {

// Conversations to token ids, by a model's chat template and tokenizer. Immutable; thread-safe.
class ChatEncoder {
 public:
  // Parses the template. INVALID_ARGUMENT, "line 3: ...". `tokenizer` is not null.
  static absl::StatusOr<std::shared_ptr<const ChatEncoder>> Create(
      std::string_view source, std::shared_ptr<const Tokenizer> tokenizer);

  // INVALID_ARGUMENT, "line 12: ...", for what the template raises; RESOURCE_EXHAUSTED, likewise,
  // where it would exceed a limit. `options` as of Tokenizer::EncodeChat; `now` for templates that
  // tell the date. Takes milliseconds for some megabytes, or what the template's limits allow.
  absl::StatusOr<std::vector<TokenId>> Encode(const Conversation& conversation,
                                              const Tokenizer::EncodeOptions& options,
                                              std::time_t now) const;
  // The prompt's text.
  absl::StatusOr<MarkedText> Render(const Conversation& conversation, std::time_t now) const;

 private:
  ChatEncoder(chat::ChatTemplate chat_template, std::shared_ptr<const Tokenizer> tokenizer);

  const chat::ChatTemplate template_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
};

}  // namespace sluice::engine
