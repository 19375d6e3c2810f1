#include "engine/chat/conversation.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/chat/chat_template.h"

namespace sluice::engine {
namespace {

std::string Render(const Conversation& conversation, std::string_view source) {
  const auto parsed = chat::ChatTemplate::Parse(source);
  if (!parsed.ok()) return Message(parsed.status());
  const auto text = parsed->Render(conversation.Variables(), 0);
  return text.ok() ? text->bytes() : Message(text.status());
}

TEST(ConversationTest, IsSeenAsHuggingFaceShowsIt) {
  Conversation conversation;
  ASSERT_TRUE(conversation.Add({.role = "user", .content = "Hi"}).ok());
  ASSERT_TRUE(
      conversation
          .Add({.role = "assistant", .tool_calls = R"([{"id": "1", "function": {"name": "f"}}])"})
          .ok());
  ASSERT_TRUE(
      conversation.Add({.role = "tool", .content = "7", .name = "f", .tool_call_id = "1"}).ok());
  EXPECT_EQ(
      Render(conversation, "{{ messages }}"),
      "[{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': '', 'tool_calls': "
      "[{'id': '1', 'function': {'name': 'f'}}]}, {'role': 'tool', 'content': '7', 'name': "
      "'f', 'tool_call_id': '1'}]");
  EXPECT_EQ(Render(conversation, "{{ tools }} {{ documents }} {{ add_generation_prompt }}"),
            "None None True");
  ASSERT_TRUE(conversation.SetTools(R"([{"z": 1, "a": 2}])").ok());
  ASSERT_TRUE(conversation.SetVariables(R"({"enable_thinking": false, "documents": []})").ok());
  conversation.set_add_generation_prompt(false);
  EXPECT_EQ(Render(conversation,
                   "{{ tools }} {{ documents }} {{ enable_thinking }} {{ add_generation_prompt }}"),
            "[{'z': 1, 'a': 2}] [] False False");
  conversation.Truncate(1);
  EXPECT_EQ(Render(conversation, "{{ messages|length }}"), "1");
}

TEST(ConversationTest, RefusesWhatATemplateMustNotSee) {
  Conversation conversation;
  EXPECT_FALSE(conversation.Add({.role = "root", .content = "x"}).ok());
  EXPECT_FALSE(conversation.Add({.role = "", .content = "x"}).ok());
  EXPECT_FALSE(conversation.Add({.role = "assistant", .tool_calls = "{}"}).ok());
  EXPECT_FALSE(conversation.Add({.role = "assistant", .tool_calls = "[1,"}).ok());
  EXPECT_TRUE(conversation.empty());
  EXPECT_FALSE(conversation.SetTools("{}").ok());
  EXPECT_FALSE(conversation.SetVariables("[]").ok());
  EXPECT_EQ(Message(conversation.SetVariables(R"({"bos_token": "x"})")),
            "'bos_token' cannot be set here");
  EXPECT_FALSE(conversation.SetVariables(R"({"messages": []})").ok());
}

}  // namespace
}  // namespace sluice::engine
