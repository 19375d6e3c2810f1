// What a client sees of pages that calls share.

#include <gtest/gtest.h>

#include <string>

#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

TEST(SharingTest, UsageSaysHowMuchOfThePromptWasFound) {
  TestServer server;
  const v1::GenerateRequest request = GreedyRequest(40, 3);
  const Reply first = server.Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_EQ(first.finished()->usage().cached_prompt_tokens(), 0);
  const Reply second = server.Generate(request);
  EXPECT_EQ(second.finished()->usage().prompt_tokens(), 40);
  EXPECT_EQ(second.finished()->usage().cached_prompt_tokens(), 32);
  EXPECT_EQ(second.finished()->kv().pages_reused(), 2);
  EXPECT_EQ(second.Tokens(), first.Tokens());
  EXPECT_EQ(server.stats().prefix_cache_queries.load(), 80u);
  EXPECT_EQ(server.stats().prefix_cache_hits.load(), 32u);
  ASSERT_TRUE(server.WaitUntilQuiet());
}

TEST(SharingTest, PromptLogprobsComeInOrderAndLongPromptsAreRefused) {
  TestServer::Options options;
  options.limits.num_pages = 2000;  // room for more than the cap
  options.max_context = 20000;
  TestServer server(options);
  v1::GenerateRequest request = GreedyRequest(600, 3);
  request.mutable_output()->set_prompt_logprobs(2);
  const Reply reply = server.Generate(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.accepted()->output().prompt_logprobs(), 2);
  int next = 1;
  bool has_text = false;
  for (const v1::GenerateResponse& event : reply.events) {
    has_text = has_text || event.has_delta();
    if (!event.has_prompt_logprobs()) continue;
    EXPECT_FALSE(has_text);
    EXPECT_EQ(event.prompt_logprobs().position(), next);
    for (const v1::TokenLogprobs& token : event.prompt_logprobs().logprobs()) {
      EXPECT_EQ(token.token_id(), request.token_ids().ids(next++));
      EXPECT_EQ(token.top_size(), 2);
      EXPECT_LE(token.logprob(), 0);
    }
  }
  EXPECT_EQ(next, 600);
  request = GreedyRequest(16385, 3);
  EXPECT_TRUE(server.Generate(request).status.ok());
  request.mutable_output()->set_prompt_logprobs(0);
  EXPECT_EQ(server.Generate(request).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(FieldsOf(server.Generate(request).status),
            std::vector<std::string>{"output.prompt_logprobs"});
}

TEST(SharingTest, SaltsAndBypassKeepCallsApart) {
  TestServer server;
  v1::GenerateRequest request = GreedyRequest(40, 3);
  const auto found = [&] {
    return server.Generate(request).finished()->usage().cached_prompt_tokens();
  };
  request.mutable_cache()->set_cache_salt("a");
  EXPECT_EQ(found(), 0);
  request.mutable_cache()->set_cache_salt("b");
  EXPECT_EQ(found(), 0);
  request.mutable_cache()->set_cache_salt("a");
  EXPECT_EQ(found(), 32);
  request.mutable_cache()->set_bypass_prefix_cache(true);
  EXPECT_EQ(found(), 0);
}

}  // namespace
}  // namespace sluice::server
