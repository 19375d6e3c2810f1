// Chat as an input of Generate: R30 to R34 of the catalogue of bad requests, and what is answered.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kTemplate[] =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if tools %}{{ tools|tojson }}{% endif %}{{ mood }}"
    "{% if messages[0].content == 'raise' %}\n{{ raise_exception('No: ' + messages[0].content) }}"
    "{% endif %}{% if messages[0].content == 'loop' %}{% for a in range(99999) %}"
    "{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}";

TestServer::Options WithTemplate() {
  TestServer::Options options;
  options.chat_template = kTemplate;
  return options;
}

v1::GenerateRequest ChatRequest(const std::string& role, const std::string& content) {
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role(role);
  message->set_content(content);
  request.mutable_sampling()->set_seed(1);
  request.mutable_stopping()->set_max_tokens(4);
  return request;
}

TEST(ChatTest, IsAnsweredLikeTheTextThatTheTemplateMakes) {
  TestServer server(WithTemplate());
  server.ExpectCanary();
  v1::GenerateRequest chat = ChatRequest("user", "Hi");
  v1::ChatMessage* reply = chat.mutable_chat()->add_messages();
  reply->set_role("assistant");
  reply->set_content("Hello");
  chat.mutable_chat()->set_tools_json(R"([{"name": "f"}])");
  chat.mutable_chat()->set_variables_json(R"({"mood": "glad"})");
  v1::GenerateRequest text = chat;
  text.set_text("<user>Hi\n<assistant>Hello\n[{\"name\": \"f\"}]glad<assistant>");
  const Reply of_chat = server.Generate(chat), of_text = server.Generate(text);
  ASSERT_TRUE(of_chat.status.ok()) << of_chat.status.error_message();
  EXPECT_EQ(of_chat.Text(), of_text.Text());
  ASSERT_NE(of_chat.accepted(), nullptr);
  EXPECT_EQ(of_chat.accepted()->prompt_tokens(), of_text.accepted()->prompt_tokens());
  EXPECT_EQ(of_chat.accepted()->prompt_tokens(), static_cast<int>(text.text().size()));
  EXPECT_FALSE(of_chat.accepted()->parse_special());
  EXPECT_TRUE(of_text.accepted()->parse_special());
  chat.mutable_chat()->set_add_generation_prompt(false);
  EXPECT_EQ(server.Generate(chat).accepted()->prompt_tokens(),
            static_cast<int>(text.text().size() - std::string("<assistant>").size()));
  server.ExpectCanary();
}

TEST(ChatTest, BadConversationsAreNamedByTheirFields) {
  TestServer server(WithTemplate());
  server.ExpectCanary();
  using Change = std::function<void(v1::Chat&)>;
  const std::pair<std::string, Change> cases[] = {
      {"chat.messages", [](v1::Chat& chat) { chat.clear_messages(); }},
      {"chat.messages",
       [](v1::Chat& chat) {
         for (int i = 0; i < 10'000; ++i) *chat.add_messages() = chat.messages(0);
       }},
      {"chat.messages[0].role", [](v1::Chat& chat) { chat.mutable_messages(0)->set_role("root"); }},
      {"chat.messages[1].role", [](v1::Chat& chat) { chat.add_messages()->set_content("x"); }},
      {"chat.messages[0].tool_calls_json",
       [](v1::Chat& chat) { chat.mutable_messages(0)->set_tool_calls_json("{"); }},
      {"chat.tools_json", [](v1::Chat& chat) { chat.set_tools_json("{}"); }},
      {"chat.tools_json", [](v1::Chat& chat) { chat.set_tools_json(std::string(100'000, '[')); }},
      {"chat.variables_json", [](v1::Chat& chat) { chat.set_variables_json("[]"); }},
      {"chat.variables_json",
       [](v1::Chat& chat) { chat.set_variables_json(R"({"messages": []})"); }},
  };
  for (const auto& [field, change] : cases) {
    v1::GenerateRequest request = ChatRequest("user", "Hi");
    change(*request.mutable_chat());
    const Reply reply = server.Generate(request);
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << field;
    EXPECT_THAT(FieldsOf(reply.status), ElementsAre(field));
    server.ExpectCanary();
  }
}

TEST(ChatTest, WhatTheTemplateRaisesNamesItsLine) {
  TestServer server(WithTemplate());
  server.ExpectCanary();
  const Reply raised = server.Generate(ChatRequest("user", "raise"));
  EXPECT_EQ(raised.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(raised.status), ElementsAre("chat"));
  EXPECT_THAT(raised.status.error_message(), HasSubstr("line 3: No: raise"));
  const Reply endless = server.Generate(ChatRequest("user", "loop"));
  EXPECT_EQ(endless.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(endless.status.error_message(), HasSubstr("line 3: the template"));
  const Reply full = server.Generate(ChatRequest("user", std::string(1000, 'x')));
  EXPECT_EQ(full.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(full.status), ElementsAre("chat"));
  server.ExpectCanary();
}

TEST(ChatTest, WithoutATemplateItSaysWhy) {
  TestServer::Options options;
  options.chat_error = "the model's chat template is not usable: line 3: nonsense";
  TestServer server(options);
  server.ExpectCanary();
  const Reply reply = server.Generate(ChatRequest("user", "Hi"));
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(reply.status), "NO_CHAT_TEMPLATE");
  EXPECT_EQ(reply.status.error_message(), options.chat_error);
  // A request that is wrong in itself is so with any model.
  EXPECT_EQ(server.Generate(ChatRequest("root", "Hi")).status.error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  TestServer::Options mute;
  mute.piece_bytes = 0;
  TestServer silent(mute);
  EXPECT_THAT(FieldsOf(silent.Generate(ChatRequest("user", "Hi")).status), Contains("chat"));
  server.ExpectCanary();
}

TEST(ChatTest, ToolsAreForTheTemplateThatTheModelHasForThem) {
  TestServer::Options options = WithTemplate();
  options.tool_use_template = "{{ raise_exception('tools: ' + tools|tojson) }}";
  TestServer server(options);
  EXPECT_TRUE(server.Generate(ChatRequest("user", "Hi")).status.ok());
  v1::GenerateRequest request = ChatRequest("user", "Hi");
  request.mutable_chat()->set_tools_json(R"([{"name": "f"}])");
  const Reply reply = server.Generate(request);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("line 1: tools: [{\"name\": \"f\"}]"));
  request.mutable_chat()->set_tools_json("[]");
  EXPECT_THAT(server.Generate(request).status.error_message(), HasSubstr("line 1: tools: []"));
  server.ExpectCanary();
}

TEST(ChatTest, ATemplateForToolsThatIsNotUsableCostsTheChatWithThem) {
  TestServer::Options options = WithTemplate();
  options.tool_use_template = "\n{% include 'tools' %}";
  TestServer server(options);
  v1::GenerateRequest request = ChatRequest("user", "Hi");
  EXPECT_TRUE(server.Generate(request).status.ok());
  request.mutable_chat()->set_tools_json(R"([{"name": "f"}])");
  const Reply reply = server.Generate(request);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(reply.status), "NO_CHAT_TEMPLATE");
  EXPECT_EQ(reply.status.error_message(),
            "the model's chat template for tools is not usable: line 2: unknown block 'include'");
  server.ExpectCanary();
}

TEST(ChatTest, ContentThatIsUnsetIsNoneBesideToolCalls) {
  TestServer::Options options;
  options.chat_template =
      "{{ raise_exception('none' if messages[0].content is none else 'text') }}";
  TestServer server(options);
  v1::GenerateRequest request = ChatRequest("assistant", "");
  v1::ChatMessage& message = *request.mutable_chat()->mutable_messages(0);
  message.set_tool_calls_json(R"([{"function": {"name": "f"}}])");
  EXPECT_THAT(server.Generate(request).status.error_message(), HasSubstr("line 1: text"));
  message.clear_content();
  EXPECT_THAT(server.Generate(request).status.error_message(), HasSubstr("line 1: none"));
  server.ExpectCanary();
}

TEST(ChatTest, GetModelTellsWhetherItIsThere) {
  for (const bool has : {true, false}) {
    TestServer server(has ? WithTemplate() : TestServer::Options());
    grpc::ClientContext context;
    v1::Model model;
    ASSERT_TRUE(server.stub().GetModel(&context, {}, &model).ok());
    EXPECT_EQ(model.tokenizer().has_chat_template(), has);
    EXPECT_THAT(model.unimplemented(), testing::Not(Contains("chat")));
    int limits = 0;
    for (const auto& limit : model.limits()) limits += limit.field() == "count(chat.messages)";
    EXPECT_EQ(limits, 1);
  }
}

}  // namespace
}  // namespace sluice::server
