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

// Conversations to token ids, by a model's chat templates and tokenizer: as in Hugging Face's
// get_chat_template, those with tools by the template `tool_use` if the model has one. Immutable;
// thread-safe.
class ChatEncoder {
 public:
  // Parses the templates. INVALID_ARGUMENT, "line 3: ...", for `source`; what is wrong with
  // `tool_use`, CheckToolUse says; when that is empty there is only one. `tokenizer` is not null.
  static absl::StatusOr<std::shared_ptr<const ChatEncoder>> Create(
      std::string_view source, std::shared_ptr<const Tokenizer> tokenizer,
      std::string_view tool_use = "");

  // FAILED_PRECONDITION, "the model's chat template for tools is not usable: line 3: ...", when
  // conversations with tools cannot be encoded.
  absl::Status CheckToolUse() const;

  // INVALID_ARGUMENT, "line 12: ...", for what the template raises; RESOURCE_EXHAUSTED, likewise,
  // where it would exceed a limit; as CheckToolUse for a conversation with tools. `options` as of
  // Tokenizer::EncodeChat; `now` for templates that tell the date. Takes milliseconds for some
  // megabytes, or what the template's limits allow.
  absl::StatusOr<std::vector<TokenId>> Encode(const Conversation& conversation,
                                              const Tokenizer::EncodeOptions& options,
                                              std::time_t now) const;
  // The prompt's text.
  absl::StatusOr<MarkedText> Render(const Conversation& conversation, std::time_t now) const;

 private:
  ChatEncoder(chat::ChatTemplate chat_template, absl::StatusOr<chat::ChatTemplate> tool_use,
              std::shared_ptr<const Tokenizer> tokenizer);

  const chat::ChatTemplate template_;
  const absl::StatusOr<chat::ChatTemplate> tool_use_;  // template_ unless the model has its own
  const std::shared_ptr<const Tokenizer> tokenizer_;
};

}  // namespace sluice::engine
