#include "engine/chat/conversation.h"

#include <string>
#include <string_view>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/chat/chat_template.h"

namespace sluice::engine {
namespace {

std::string Render(const Conversation& conversation, std::string_view source) {
  const auto parsed = chat::ChatTemplate::Parse(source);
  if (!parsed.ok()) return Message(parsed.status());
  const auto text = parsed->Render(conversation.Variables(*parsed), 0);
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

// The two conditions of the template that DeepSeek-R1-Distill was published with.
constexpr char kDistill[] =
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' and message['content'] is none %}"
    "{%- for tool in message['tool_calls'] %}{{ '<call>' + tool['function']['name'] }}"
    "{%- endfor %}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{{ '<text>' + message['content'] }}{%- endif %}{%- endfor %}";
constexpr char kConcatenating[] =
    "{% for message in messages %}<{{ message['content'] + '>' }}"
    "{% for tool in message.tool_calls %}{{ tool.function.name }}{% endfor %}{% endfor %}";

std::string RenderOne(Conversation::Message message, std::string_view source) {
  Conversation conversation;
  EXPECT_TRUE(conversation.Add(std::move(message)).ok());
  return Render(conversation, source);
}

TEST(ConversationTest, ContentIsNoneBesideToolCallsForTemplatesThatKnowIt) {
  const std::string calls = R"([{"function": {"name": "f"}}, {"function": {"name": "g"}}])";
  const Conversation::Message only_calls = {.role = "assistant", .tool_calls = calls};
  EXPECT_EQ(RenderOne(only_calls, kDistill), "<call>f<call>g");
  EXPECT_EQ(RenderOne(only_calls, kConcatenating), "<>fg");
  EXPECT_EQ(RenderOne(only_calls, "{{ messages[0].content }}"), "");
  // What was said is what the template sees, and be it nothing.
  EXPECT_EQ(RenderOne({.role = "assistant", .content = "", .tool_calls = calls}, kDistill),
            "<text>");
  EXPECT_EQ(RenderOne({.role = "assistant", .content = "Hm", .tool_calls = calls}, kDistill),
            "<text>Hm");
  EXPECT_EQ(RenderOne({.role = "assistant"}, kDistill), "<text>");
  EXPECT_EQ(RenderOne({.role = "assistant", .tool_calls = "[]"}, kDistill), "<text>");
  const std::string asks = "{{ messages[0].content is none }}";
  EXPECT_EQ(RenderOne(only_calls, asks), "True");
  EXPECT_EQ(RenderOne({.role = "tool", .tool_calls = calls}, asks), "False");
  EXPECT_EQ(RenderOne({.role = "user"}, asks), "False");
}

TEST(ConversationTest, TemplatesThatKnowAbsentContentAreToldByTheirText) {
  const auto knows = [](std::string_view source) {
    const auto parsed = chat::ChatTemplate::Parse(source);
    return parsed.ok() && parsed->knows_absent_content();
  };
  for (const char* condition :
       {"m['content'] is none", "m[\"content\"] is not none", "m.content is none or x",
        "m.content  is\n not none", "content == none", "m.content!=None",
        "(m.get('content')) is none", "m.content and x or m.content is none"}) {
    EXPECT_TRUE(knows(std::string("{% if ") + condition + " %}{% endif %}")) << condition;
  }
  for (const char* condition :
       {"m.reasoning_content is none", "m.contents is none", "m.content is string",
        "m.content is not defined", "m.content", "m.content == nonesuch", "m.name is none",
        "m.content is not string or m.tools is none", "m.get('content', none)", "content is"}) {
    EXPECT_FALSE(knows(std::string("{% if ") + condition + " %}{% endif %}")) << condition;
  }
  EXPECT_FALSE(knows("content"));
  EXPECT_FALSE(knows("content is not"));
  EXPECT_FALSE(knows("content ="));
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
