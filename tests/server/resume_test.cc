// `resume`: a broken stream goes on, on a server of equal provenance alone.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <ctime>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

using testing::Contains;
using testing::HasSubstr;

// The call that goes on with the stream of `whole`, as if it had broken after `num_tokens`.
v1::GenerateRequest Broken(const v1::GenerateRequest& request, const Reply& whole,
                           size_t num_tokens) {
  v1::GenerateRequest resumed = request;
  const v1::Accepted& echo = *whole.accepted();
  *resumed.mutable_sampling() = echo.sampling();
  *resumed.mutable_stopping() = echo.stopping();
  *resumed.mutable_output() = echo.output();
  *resumed.mutable_resume()->mutable_provenance() = echo.provenance();
  resumed.mutable_resume()->set_prompt_digest(echo.prompt_digest());
  if (echo.has_rendered_at()) resumed.mutable_resume()->set_rendered_at(echo.rendered_at());
  const std::vector<int32_t> tokens = whole.Tokens();
  for (size_t i = 0; i < num_tokens; ++i) resumed.mutable_resume()->add_token_ids(tokens[i]);
  return resumed;
}

// What was said with the first so many tokens, if a delta ended there.
std::string TextAfter(const Reply& whole, size_t num_tokens, bool* is_border) {
  std::string text;
  size_t count = 0;
  for (const auto& event : whole.events) {
    if (count >= num_tokens || !event.has_delta()) continue;
    count += static_cast<size_t>(event.delta().token_ids_size());
    text += event.delta().text();
  }
  *is_border = count == num_tokens;
  return text;
}

// The reply's tokens; its deltas follow one another from `first_position` on.
std::vector<int32_t> TokensFrom(const Reply& reply, size_t first_position) {
  std::vector<int32_t> ids;
  for (const auto& event : reply.events) {
    if (!event.has_delta()) continue;
    EXPECT_EQ(event.delta().position(), static_cast<int32_t>(first_position + ids.size()));
    ids.insert(ids.end(), event.delta().token_ids().begin(), event.delta().token_ids().end());
  }
  return ids;
}

TEST(ResumeTest, GoesOnOnAnotherServer) {
  TestServer::Options slow;
  slow.runner.on_wait = [] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); };
  TestServer first(slow), second;
  v1::GenerateRequest request = GreedyRequest(5, 40);
  request.mutable_sampling()->clear_seed();
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_frequency_penalty(0.5f);
  request.mutable_stopping()->set_min_tokens(7);
  request.mutable_output()->set_logprobs(2);
  request.mutable_output()->set_prompt_logprobs(0);
  Reply whole = first.Generate(request);
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message();
  // A stop string that ends it, so that it is held back on the way.
  const std::string text = whole.Text();
  request.mutable_sampling()->set_seed(whole.accepted()->sampling().seed());
  request.mutable_stopping()->add_stop(text.substr(30, 4));
  whole = first.Generate(request);
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message();
  const std::vector<int32_t> tokens = whole.Tokens();
  const auto& end = whole.events[whole.events.size() - 2].sequence_finished();
  ASSERT_EQ(end.finish_reason(), v1::FINISH_REASON_STOP);
  int num_borders = 0;
  for (size_t cut = 0; cut <= tokens.size(); ++cut) {
    SCOPED_TRACE("cut after " + std::to_string(cut));
    const Reply rest = second.Generate(Broken(request, whole, cut));
    ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
    const auto border = tokens.begin() + static_cast<std::ptrdiff_t>(cut);
    EXPECT_EQ(TokensFrom(rest, cut), std::vector<int32_t>(border, tokens.end()));
    bool is_border = false;
    const std::string said = TextAfter(whole, cut, &is_border);
    if (is_border) {
      ++num_borders;
      EXPECT_EQ(said + rest.Text(), whole.Text());
    }
    EXPECT_EQ(rest.events[rest.events.size() - 2].sequence_finished().SerializeAsString(),
              end.SerializeAsString());
    ASSERT_NE(rest.finished(), nullptr);
    EXPECT_EQ(rest.finished()->usage().prompt_tokens(), 5);
    EXPECT_EQ(rest.finished()->usage().completion_tokens(), static_cast<int>(tokens.size()));
    EXPECT_EQ(rest.finished()->usage().resumed_tokens(), static_cast<int>(cut));
    // They came before the first token, and nothing else is echoed than was.
    EXPECT_EQ(rest.events[1].has_prompt_logprobs(), cut == 0);
    EXPECT_EQ(rest.accepted()->output().SerializeAsString(),
              whole.accepted()->output().SerializeAsString());
  }
  EXPECT_GT(num_borders, 10);
  EXPECT_TRUE(second.WaitUntilQuiet());
}

TEST(ResumeTest, RefusesAnotherProvenance) {
  TestServer server;
  const v1::GenerateRequest request = GreedyRequest(5, 12);
  const Reply whole = server.Generate(request);
  ASSERT_TRUE(whole.status.ok());
  const auto* fields = v1::Provenance::descriptor();
  ASSERT_EQ(fields->field_count(), 5);
  for (int i = 0; i < fields->field_count(); ++i) {
    const std::string name = fields->field(i)->name();
    v1::GenerateRequest resumed = Broken(request, whole, 3);
    v1::Provenance* provenance = resumed.mutable_resume()->mutable_provenance();
    provenance->GetReflection()->SetString(provenance, fields->field(i), "another\n");
    resumed.mutable_resume()->set_token_ids(0, 256);  // no token of this model
    const Reply reply = server.Generate(resumed);
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << name;
    EXPECT_EQ(ReasonOf(reply.status), "PROVENANCE_MISMATCH");
    EXPECT_THAT(reply.status.error_message(), HasSubstr("resume.provenance: " + name + " was"));
    EXPECT_EQ(MetadataOf(reply.status, "resumed_" + name), "\"another\\x0a\"");
    EXPECT_NE(MetadataOf(reply.status, "served_" + name), "");
    EXPECT_EQ(reply.accepted(), nullptr);
  }
  server.ExpectCanary();
}

// A chat whose template tells the date goes on with the prompt that it had, whenever that was.
TEST(ResumeTest, GoesOnWithAChat) {
  TestServer::Options options;
  options.chat_template = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}{{ messages[0].content }}";
  TestServer first(options), second(options);
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("Hi");
  request.mutable_sampling()->set_seed(3);
  request.mutable_stopping()->set_max_tokens(12);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_output()->set_return_token_ids(true);
  Reply whole = first.Generate(request);
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message();
  ASSERT_TRUE(whole.accepted()->has_rendered_at());
  const auto rendered_at = whole.accepted()->rendered_at();
  EXPECT_NEAR(static_cast<double>(rendered_at), static_cast<double>(std::time(nullptr)), 60);
  // The same of yesterday: what it then said.
  v1::GenerateRequest yesterday = Broken(request, whole, 0);
  yesterday.mutable_resume()->set_rendered_at(rendered_at - 86'400);
  const Reply refused = second.Generate(yesterday);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(refused.status), "PROMPT_MISMATCH");
  EXPECT_EQ(MetadataOf(refused.status, "resumed_prompt_digest"),
            '"' + whole.accepted()->prompt_digest() + '"');
  const std::string digest = MetadataOf(refused.status, "served_prompt_digest");
  ASSERT_EQ(digest.size(), 66u);
  yesterday.mutable_resume()->set_prompt_digest(digest.substr(1, 64));
  whole = first.Generate(yesterday);
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message();
  EXPECT_EQ(whole.accepted()->rendered_at(), rendered_at - 86'400);
  const std::vector<int32_t> tokens = whole.Tokens();
  ASSERT_EQ(tokens.size(), 12u);
  for (size_t cut = 0; cut <= tokens.size(); ++cut) {
    const Reply rest = second.Generate(Broken(request, whole, cut));
    ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
    const auto border = tokens.begin() + static_cast<std::ptrdiff_t>(cut);
    EXPECT_EQ(TokensFrom(rest, cut), std::vector<int32_t>(border, tokens.end()));
  }
  v1::GenerateRequest blind = Broken(request, whole, 3);
  blind.mutable_resume()->clear_prompt_digest();
  EXPECT_THAT(FieldsOf(second.Generate(blind).status), Contains("resume.prompt_digest"));
  for (const int64_t at : {int64_t{-1}, int64_t{253'402'300'800}}) {
    v1::GenerateRequest beyond = Broken(request, whole, 3);
    beyond.mutable_resume()->set_rendered_at(at);
    EXPECT_THAT(FieldsOf(second.Generate(beyond).status), Contains("resume.rendered_at"));
  }
}

TEST(ResumeTest, RefusesAnotherPrompt) {
  TestServer server;
  const v1::GenerateRequest request = GreedyRequest(5, 12);
  const Reply whole = server.Generate(request);
  ASSERT_TRUE(whole.status.ok());
  EXPECT_FALSE(whole.accepted()->has_rendered_at());
  v1::GenerateRequest resumed = Broken(request, whole, 3);
  EXPECT_TRUE(server.Generate(resumed).status.ok());
  resumed.mutable_token_ids()->set_ids(0, request.token_ids().ids(0) + 1);
  const Reply reply = server.Generate(resumed);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(reply.status), "PROMPT_MISMATCH");
  // Who knows no digest has the prompt itself.
  resumed.mutable_resume()->clear_prompt_digest();
  EXPECT_TRUE(server.Generate(resumed).status.ok());
  server.ExpectCanary();
}

TEST(ResumeTest, NamesTheFieldThatIsWrong) {
  TestServer server;
  const v1::GenerateRequest request = GreedyRequest(5, 12);
  const Reply whole = server.Generate(request);
  ASSERT_TRUE(whole.status.ok());
  struct Case {
    std::string field;
    std::function<void(v1::GenerateRequest&)> change;
  };
  const std::vector<Case> cases = {
      {"resume.provenance", [](auto& in) { in.mutable_resume()->clear_provenance(); }},
      {"resume.token_ids[0]", [](auto& in) { in.mutable_resume()->set_token_ids(0, -1); }},
      {"resume.token_ids[2]", [](auto& in) { in.mutable_resume()->set_token_ids(2, 256); }},
      // More than max_tokens, more than may ever be.
      {"resume.token_ids[12]",
       [](auto& in) {
         for (int i = 0; i < 10; ++i) in.mutable_resume()->add_token_ids(1);
       }},
      {"resume.token_ids",
       [](auto& in) {
         for (int i = 0; i < 512; ++i) in.mutable_resume()->add_token_ids(1);
       }},
      // After the end by a token.
      {"resume.token_ids[2]",
       [](auto& in) { in.mutable_stopping()->add_stop_token_ids(in.resume().token_ids(1)); }},
      {"sampling.seed",
       [](auto& in) {
         in.mutable_sampling()->set_temperature(0.5f);
         in.mutable_sampling()->clear_seed();
       }},
      {"sampling.n", [](auto& in) { in.mutable_sampling()->set_n(2); }},
  };
  server.ExpectCanary();
  for (const Case& bad : cases) {
    v1::GenerateRequest resumed = Broken(request, whole, 3);
    bad.change(resumed);
    const Reply reply = server.Generate(resumed);
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << bad.field;
    EXPECT_THAT(FieldsOf(reply.status), Contains(bad.field)) << reply.status.error_message();
    EXPECT_EQ(ReasonOf(reply.status), "BAD_FIELD");
    server.ExpectCanary();
  }
  // A stream of none of whose tokens the client knows begins anew, greedy without a seed.
  v1::GenerateRequest anew = Broken(request, whole, 0);
  anew.mutable_sampling()->clear_seed();
  EXPECT_TRUE(server.Generate(anew).status.ok());
}

}  // namespace
}  // namespace sluice::server
