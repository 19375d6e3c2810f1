#include "engine/chat/chat_encoder.h"

#include <optional>
#include <string>
#include <utility>

#include "engine/base/status.h"

namespace sluice::engine {

ChatEncoder::ChatEncoder(chat::ChatTemplate chat_template,
                         std::shared_ptr<const Tokenizer> tokenizer)
    : template_(std::move(chat_template)), tokenizer_(std::move(tokenizer)) {}

absl::StatusOr<std::shared_ptr<const ChatEncoder>> ChatEncoder::Create(
    std::string_view source, std::shared_ptr<const Tokenizer> tokenizer) {
  ASSIGN_OR_RETURN(chat::ChatTemplate parsed, chat::ChatTemplate::Parse(source));
  return std::shared_ptr<const ChatEncoder>(
      new ChatEncoder(std::move(parsed), std::move(tokenizer)));
}

absl::StatusOr<MarkedText> ChatEncoder::Render(const Conversation& conversation,
                                               std::time_t now) const {
  auto variables = conversation.Variables();
  const auto add = [&](const char* name, std::optional<TokenId> id) {
    if (!id) return;
    variables.emplace_back(name, chat::Value::Template(std::string(tokenizer_->TokenBytes(*id))));
  };
  add("bos_token", tokenizer_->bos());
  add("eos_token", tokenizer_->eos());
  return template_.Render(std::move(variables), now);
}

absl::StatusOr<std::vector<TokenId>> ChatEncoder::Encode(const Conversation& conversation,
                                                         const Tokenizer::EncodeOptions& options,
                                                         std::time_t now) const {
  ASSIGN_OR_RETURN(const MarkedText text, Render(conversation, now));
  return tokenizer_->EncodeChat(text, options);
}

}  // namespace sluice::engine
