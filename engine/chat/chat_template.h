#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/chat/limits.h"
#include "engine/chat/value.h"
#include "engine/tokenizer/marked_text.h"

namespace sluice::engine::chat {

struct Statement;

// A chat template: the Jinja 3 text with which a model's makers turn a conversation into a prompt,
// under the settings of Hugging Face's apply_chat_template (trim_blocks, lstrip_blocks,
// loopcontrols, `generation` blocks, tojson without escapes for HTML, raise_exception,
// strftime_now). Immutable; thread-safe.
//
// Every byte of the result is marked as text of the template or as content, and keeps its mark
// through slicing, joining, filters and macros: template text is what stands in the template
// itself, between its tags or as a string in them, and variables that the caller makes with
// Value::Template; all else is content, also numbers and the quotes and braces of tojson. The
// tokenizer recognises control tokens in template text only, so that no message can forge a turn.
//
//   auto parsed = ChatTemplate::Parse(source);     // StatusOr
//   auto text = parsed->Render({{"messages", messages}, {"add_generation_prompt", Value(true)}},
//                              std::time(nullptr));
class ChatTemplate {
 public:
  // INVALID_ARGUMENT, "line 3: expected ..., got ...".
  static absl::StatusOr<ChatTemplate> Parse(std::string_view source, const Limits& limits = {});

  // Whether the text asks somewhere if a `content` is none. Most templates do not, and fail or
  // write "None" where it is.
  bool knows_absent_content() const { return knows_absent_content_; }

  // INVALID_ARGUMENT, "line 12: ...", for what the template raises or cannot do;
  // RESOURCE_EXHAUSTED where it would exceed a limit. `now`: of strftime_now.
  absl::StatusOr<MarkedText> Render(std::vector<std::pair<std::string, Value>> variables,
                                    std::time_t now) const;

 private:
  ChatTemplate(std::shared_ptr<const std::vector<Statement>> block, bool knows_absent_content,
               const Limits& limits);

  std::shared_ptr<const std::vector<Statement>> block_;
  bool knows_absent_content_;
  Limits limits_;
};

}  // namespace sluice::engine::chat
