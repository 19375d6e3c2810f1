#include "engine/chat/conversation.h"

#include <memory>

#include "engine/base/status.h"
#include "engine/chat/json_text.h"

namespace sluice::engine {
namespace {

using chat::Dict;
using chat::Value;

constexpr int kMaxJsonDepth = 64;
constexpr std::string_view kReserved[] = {"messages", "tools", "add_generation_prompt", "bos_token",
                                          "eos_token"};

absl::StatusOr<Value> ReadList(std::string_view json) {
  ASSIGN_OR_RETURN(Value list, chat::FromJson(json, kMaxJsonDepth));
  if (list.is_sequence()) return list;
  return InvalidArgument("expected a JSON array");
}

// The message, with empty content where it is none.
Value WithContent(const Value& message) {
  const Value key = Value::Template("content");
  if (!message.dict().Find(key)->is_none()) return message;
  auto copy = std::make_shared<Dict>(message.dict());
  copy->Set(key, Value::Content(""));
  return Value::DictPtr(std::move(copy));
}

}  // namespace

bool Conversation::IsRole(std::string_view role) {
  return std::find(kRoles.begin(), kRoles.end(), role) != kRoles.end();
}

absl::Status Conversation::Add(Message message) {
  if (!IsRole(message.role)) return InvalidArgument("an unknown role");
  const bool may_only_call = message.role == "assistant" && !message.content.has_value();
  auto entry = std::make_shared<Dict>();
  const auto set = [&entry](std::string_view key, Value value) {
    entry->Set(Value::Template(std::string(key)), std::move(value));
  };
  set("role", Value::Template(std::move(message.role)));
  set("content", Value::Content(std::move(message.content).value_or("")));
  if (!message.name.empty()) set("name", Value::Content(std::move(message.name)));
  if (!message.reasoning_content.empty()) {
    set("reasoning_content", Value::Content(std::move(message.reasoning_content)));
  }
  if (!message.tool_calls.empty()) {
    ASSIGN_OR_RETURN(Value calls, ReadList(message.tool_calls));
    if (may_only_call && calls.IsTrue()) set("content", Value(chat::None()));
    set("tool_calls", std::move(calls));
  }
  if (!message.tool_call_id.empty()) {
    set("tool_call_id", Value::Content(std::move(message.tool_call_id)));
  }
  messages_.emplace_back(Value::DictPtr(std::move(entry)));
  return absl::OkStatus();
}

absl::Status Conversation::SetTools(std::string_view json) {
  ASSIGN_OR_RETURN(tools_, ReadList(json));
  return absl::OkStatus();
}

absl::Status Conversation::SetVariables(std::string_view json) {
  ASSIGN_OR_RETURN(const Value object, chat::FromJson(json, kMaxJsonDepth));
  if (!object.is_dict()) return InvalidArgument("expected a JSON object");
  variables_.clear();
  for (const auto& [key, value] : object.dict().entries) {
    const std::string& name = key.bytes();
    if (std::find(std::begin(kReserved), std::end(kReserved), name) != std::end(kReserved)) {
      return InvalidArgument("'" + name + "' cannot be set here");
    }
    variables_.emplace_back(name, value);
  }
  return absl::OkStatus();
}

std::vector<std::pair<std::string, Value>> Conversation::Variables(
    const chat::ChatTemplate& seen_by) const {
  std::vector<std::pair<std::string, Value>> variables = variables_;
  // Hugging Face defines the absent ones too, as none.
  if (std::none_of(variables.begin(), variables.end(),
                   [](const auto& entry) { return entry.first == "documents"; })) {
    variables.emplace_back("documents", Value(chat::None()));
  }
  std::vector<Value> messages = messages_;
  if (!seen_by.knows_absent_content()) {
    for (Value& message : messages) message = WithContent(message);
  }
  variables.emplace_back("messages", Value::List(std::move(messages)));
  variables.emplace_back("tools", tools_);
  variables.emplace_back("add_generation_prompt", Value(adds_generation_prompt_));
  return variables;
}

}  // namespace sluice::engine
