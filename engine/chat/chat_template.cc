#include "engine/chat/chat_template.h"

#include "engine/base/status.h"
#include "engine/chat/interpreter.h"
#include "engine/chat/parser.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine::chat {
namespace {

// Names and contents in messages are cut at so many bytes: not within a code point.
absl::Status WithWholeCodePoints(const absl::Status& status) {
  const std::string message = Message(status);
  std::string whole;
  for (size_t at = 0; at < message.size();) {
    const Utf8Step step = NextUtf8(std::string_view(message).substr(at));
    if (step.state == Utf8State::kValid) whole += message.substr(at, step.length);
    at += step.length;
  }
  return MakeStatus(status.code(), whole);
}

}  // namespace

ChatTemplate::ChatTemplate(std::shared_ptr<const Block> block, const Limits& limits)
    : block_(std::move(block)), limits_(limits) {}

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(std::string_view source, const Limits& limits) {
  absl::StatusOr<Block> block = ParseTemplate(source, limits);
  if (!block.ok()) return WithWholeCodePoints(block.status());
  return ChatTemplate(std::make_shared<const Block>(*std::move(block)), limits);
}

absl::StatusOr<MarkedText> ChatTemplate::Render(
    std::vector<std::pair<std::string, Value>> variables, std::time_t now) const {
  absl::StatusOr<MarkedText> text = Interpreter(limits_, std::move(variables), now).Render(*block_);
  if (!text.ok()) return WithWholeCodePoints(text.status());
  return text;
}

}  // namespace sluice::engine::chat
