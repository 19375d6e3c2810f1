#include "engine/chat/chat_encoder.h"

#include <optional>
#include <string>
#include <utility>

#include "engine/base/status.h"

namespace sluice::engine {

ChatEncoder::ChatEncoder(chat::ChatTemplate chat_template,
                         absl::StatusOr<chat::ChatTemplate> tool_use,
                         std::shared_ptr<const Tokenizer> tokenizer)
    : template_(std::move(chat_template)),
      tool_use_(std::move(tool_use)),
      tokenizer_(std::move(tokenizer)) {}

absl::StatusOr<std::shared_ptr<const ChatEncoder>> ChatEncoder::Create(
    std::string_view source, std::shared_ptr<const Tokenizer> tokenizer,
    std::string_view tool_use) {
  ASSIGN_OR_RETURN(chat::ChatTemplate parsed, chat::ChatTemplate::Parse(source));
  absl::StatusOr<chat::ChatTemplate> for_tools = parsed;
  if (!tool_use.empty()) for_tools = chat::ChatTemplate::Parse(tool_use);
  return std::shared_ptr<const ChatEncoder>(
      new ChatEncoder(std::move(parsed), std::move(for_tools), std::move(tokenizer)));
}

absl::Status ChatEncoder::CheckToolUse() const {
  if (tool_use_.ok()) return absl::OkStatus();
  return FailedPrecondition("the model's chat template for tools is not usable: " +
                            Message(tool_use_.status()));
}

absl::StatusOr<MarkedText> ChatEncoder::Render(const Conversation& conversation,
                                               std::time_t now) const {
  if (conversation.has_tools()) RETURN_IF_ERROR(CheckToolUse());
  const chat::ChatTemplate& chosen = conversation.has_tools() ? *tool_use_ : template_;
  auto variables = conversation.Variables(chosen);
  const auto add = [&](const char* name, std::optional<TokenId> id) {
    if (!id) return;
    variables.emplace_back(name, chat::Value::Template(std::string(tokenizer_->TokenBytes(*id))));
  };
  add("bos_token", tokenizer_->bos());
  add("eos_token", tokenizer_->eos());
  return chosen.Render(std::move(variables), now);
}

absl::StatusOr<std::vector<TokenId>> ChatEncoder::Encode(const Conversation& conversation,
                                                         const Tokenizer::EncodeOptions& options,
                                                         std::time_t now) const {
  ASSIGN_OR_RETURN(const MarkedText text, Render(conversation, now));
  return tokenizer_->EncodeChat(text, options);
}

}  // namespace sluice::engine
