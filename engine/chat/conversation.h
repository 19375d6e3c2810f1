#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"

#include "engine/chat/chat_template.h"
#include "engine/chat/value.h"

namespace sluice::engine {

// What a chat template turns into a prompt: messages, tools and what else the caller sets. Value;
// not thread-safe, handed from thread to thread as a whole.
//
//   Conversation conversation;
//   RETURN_IF_ERROR(conversation.Add({.role = "user", .content = "Hello!"}));
class Conversation {
 public:
  static constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user",
                                                             "assistant", "tool"};
  static bool IsRole(std::string_view role);

  // All but the role may be empty: the template then sees no such key, but for `content`. Where an
  // assistant only calls tools, absent content is none, as in OpenAI's API, for a template that
  // knows it (ChatTemplate::knows_absent_content); all other absent content is empty.
  struct Message {
    std::string role;
    std::optional<std::string> content{};
    std::string name{};
    std::string reasoning_content{};
    std::string tool_calls{};  // JSON array
    std::string tool_call_id{};
  };
  // INVALID_ARGUMENT for a role that is none of kRoles and for tool calls that are no JSON array.
  // The role counts as template text: it is one of a few words, and templates make control tokens
  // of it.
  absl::Status Add(Message message);
  // A JSON array of tools, as Hugging Face's and OpenAI's APIs have them.
  absl::Status SetTools(std::string_view json);
  // A JSON object of other variables of the template, such as enable_thinking. INVALID_ARGUMENT for
  // names that have a meaning of their own.
  absl::Status SetVariables(std::string_view json);
  // Whether the prompt ends with the beginning of the assistant's reply.
  void set_add_generation_prompt(bool adds) { adds_generation_prompt_ = adds; }

  bool has_tools() const { return !tools_.is_none(); }  // also none at all: "[]"
  bool empty() const { return messages_.empty(); }
  size_t num_messages() const { return messages_.size(); }
  // Forgets the messages after the first `count`.
  void Truncate(size_t count) { messages_.resize(std::min(count, messages_.size())); }
  // What the template sees.
  std::vector<std::pair<std::string, chat::Value>> Variables(
      const chat::ChatTemplate& seen_by) const;

 private:
  std::vector<chat::Value> messages_;
  chat::Value tools_ = chat::Value(chat::None());
  std::vector<std::pair<std::string, chat::Value>> variables_;
  bool adds_generation_prompt_ = true;
};

}  // namespace sluice::engine
