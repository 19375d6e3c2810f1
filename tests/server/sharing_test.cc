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
