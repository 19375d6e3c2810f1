#include "engine/chat/chat_template.h"

#include <algorithm>
#include <cctype>

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

bool IsOfName(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// "message['content'] is none", "content is not none", "m.content == none", "m.get('content') !=
// None".
bool AsksForAbsentContent(std::string_view source) {
  static constexpr std::string_view kContent = "content";
  for (size_t at = source.find(kContent); at != source.npos; at = source.find(kContent, at)) {
    const bool is_longer = at > 0 && IsOfName(source[at - 1]);  // reasoning_content
    at += kContent.size();
    if (is_longer) continue;
    std::string_view rest = source.substr(at);
    rest.remove_prefix(std::min(rest.find_first_not_of("'\"])"), rest.size()));
    const auto take = [&rest](std::string_view word) {
      rest.remove_prefix(std::min(rest.find_first_not_of(" \t\r\n"), rest.size()));
      const std::string_view after = rest.substr(std::min(word.size(), rest.size()));
      const bool goes_on = IsOfName(word.back()) && !after.empty() && IsOfName(after.front());
      if (!rest.starts_with(word) || goes_on) return false;
      rest = after;
      return true;
    };
    if (take("is")) {
      take("not");
    } else if (!take("==") && !take("!=")) {
      continue;
    }
    if (take("none") || take("None")) return true;
  }
  return false;
}

}  // namespace

ChatTemplate::ChatTemplate(std::shared_ptr<const Block> block, bool knows_absent_content,
                           const Limits& limits)
    : block_(std::move(block)), knows_absent_content_(knows_absent_content), limits_(limits) {}

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(std::string_view source, const Limits& limits) {
  absl::StatusOr<Block> block = ParseTemplate(source, limits);
  if (!block.ok()) return WithWholeCodePoints(block.status());
  return ChatTemplate(std::make_shared<const Block>(*std::move(block)),
                      AsksForAbsentContent(source), limits);
}

absl::StatusOr<MarkedText> ChatTemplate::Render(
    std::vector<std::pair<std::string, Value>> variables, std::time_t now) const {
  absl::StatusOr<MarkedText> text = Interpreter(limits_, std::move(variables), now).Render(*block_);
  if (!text.ok()) return WithWholeCodePoints(text.status());
  return text;
}

}  // namespace sluice::engine::chat
