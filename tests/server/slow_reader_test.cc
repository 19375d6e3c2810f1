#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

using std::chrono::milliseconds;

constexpr int kTokens = 4000;

// Every token is a kilobyte of text, so that a reader that stops is noticed soon.
TestServer::Options LongPieces(milliseconds stall_timeout) {
  TestServer::Options options;
  options.piece_bytes = 1024;
  options.max_context = 8192;
  options.limits.num_pages = 1025;
  options.server.stall_timeout = stall_timeout;
  return options;
}

// Waits until the engine makes no more tokens for a while.
uint64_t TokensWhenPaused(TestServer& server) {
  uint64_t before = 0;
  Eventually([&] {
    before = server.stats().generation_tokens.load();
    std::this_thread::sleep_for(milliseconds(200));
    return before > 0 && server.stats().generation_tokens.load() == before;
  });
  return before;
}

TEST(SlowReaderTest, IsPausedAndGoesOnWithoutLoss) {
  TestServer server(LongPieces(milliseconds(60'000)));
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, GreedyRequest(5, kTokens));
  const uint64_t made = TokensWhenPaused(server);
  EXPECT_LT(made, static_cast<uint64_t>(kTokens) / 2);
  Reply reply;
  v1::GenerateResponse event;
  while (reader->Read(&event)) reply.events.push_back(event);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(reply.Tokens().size(), static_cast<size_t>(kTokens));
  EXPECT_EQ(reply.Text().size(), static_cast<size_t>(kTokens) * 1024);
  EXPECT_TRUE(server.WaitUntilQuiet());
}

TEST(SlowReaderTest, IsNotSeenInACallThatAsksForNothingButTheEnd) {
  TestServer::Options options = LongPieces(milliseconds(60'000));
  options.max_context = 20'000;
  options.limits.num_pages = 2049;
  TestServer server(options);
  v1::GenerateRequest request = GreedyRequest(5, 18'000);  // more than 64 KiB of ids
  request.mutable_output()->set_return_token_ids(false);
  request.mutable_output()->set_return_text(false);
  const Reply reply = server.Generate(request, std::chrono::seconds(30));
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  ASSERT_NE(reply.finished(), nullptr);
  EXPECT_EQ(reply.finished()->usage().completion_tokens(), 18'000);
}

TEST(SlowReaderTest, IsAbortedAfterTheStallTimeoutAndLosesItsPages) {
  TestServer server(LongPieces(milliseconds(1500)));
  server.ExpectCanary();
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, GreedyRequest(5, kTokens));
  // Read again in time to see the status, before the stream is torn down.
  std::this_thread::sleep_for(milliseconds(2200));
  EXPECT_EQ(server.stats().kv_pages_free.load(), server.stats().kv_pages_total.load());
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED) << status.error_message();
  EXPECT_EQ(ReasonOf(status), "SLOW_READER");
  EXPECT_NE(MetadataOf(status, "tokens_sent"), "");
  server.ExpectCanary();
}

TEST(SlowReaderTest, IsTornDownWhenItNeverReadsAgain) {
  TestServer server(LongPieces(milliseconds(300)));
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, GreedyRequest(5, kTokens));
  ASSERT_TRUE(Eventually([&] { return server.stats().generation_tokens.load() > 0; }));
  EXPECT_TRUE(server.WaitUntilQuiet());  // no open stream, though nothing was ever read
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST(SlowReaderTest, DoesNotSlowTheOthers) {
  TestServer::Options options = LongPieces(milliseconds(60'000));
  TestServer server(options);
  grpc::ClientContext context;
  auto stalled = server.stub().Generate(&context, GreedyRequest(5, kTokens));
  TokensWhenPaused(server);
  const Reply reply = server.Generate(GreedyRequest(7, 200));
  EXPECT_TRUE(reply.status.ok());
  EXPECT_EQ(reply.Tokens().size(), 200u);
  context.TryCancel();
  v1::GenerateResponse event;
  while (stalled->Read(&event)) {
  }
  EXPECT_EQ(stalled->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(server.WaitUntilQuiet());
}

}  // namespace
}  // namespace sluice::server
