#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using std::chrono::milliseconds;
using testing::HasSubstr;

// The health of a service; -1 when it is unknown.
int HealthOf(TestServer& server, const std::string& service) {
  grpc::ClientContext context;
  HealthCheckRequest request;
  request.set_service(service);
  HealthCheckResponse response;
  const grpc::Status status = server.health().Check(&context, request, &response);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) return -1;
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.status();
}

TestServer::Options SlowSteps() {
  TestServer::Options options;
  options.runner.on_wait = [] { std::this_thread::sleep_for(milliseconds(3)); };
  return options;
}

TEST(HealthTest, SaysServingOnlyFromServeToDrain) {
  TestServer::Options options;
  options.serve = false;
  TestServer server(options);
  EXPECT_EQ(HealthOf(server, ""), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(HealthOf(server, "sluice.v1.Inference"), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(HealthOf(server, "liveness"), HealthCheckResponse::SERVING);
  EXPECT_EQ(HealthOf(server, "model/fake"), -1);
  EXPECT_EQ(HealthOf(server, "startup"), HealthCheckResponse::NOT_SERVING);
  server.Serve();
  EXPECT_EQ(HealthOf(server, "startup"), HealthCheckResponse::SERVING);
  EXPECT_EQ(HealthOf(server, ""), HealthCheckResponse::SERVING);
  EXPECT_EQ(HealthOf(server, "sluice.v1.Inference"), HealthCheckResponse::SERVING);
  EXPECT_EQ(HealthOf(server, "model/fake"), HealthCheckResponse::SERVING);
  EXPECT_EQ(HealthOf(server, "no such"), -1);
  server.server().BeginDrain();
  EXPECT_EQ(HealthOf(server, ""), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(HealthOf(server, "liveness"), HealthCheckResponse::SERVING);
}

TEST(HealthTest, GivesUpAnEngineThatHangs) {
  std::atomic<bool> hangs{true};
  std::atomic<int> steps{0};
  TestServer::Options options;
  options.server.hang_timeout = milliseconds(300);
  options.runner.on_wait = [&] {
    if (steps.fetch_add(1) < 20) return;
    while (hangs.load()) std::this_thread::sleep_for(milliseconds(1));
  };
  TestServer server(options);
  std::this_thread::sleep_for(milliseconds(500));
  EXPECT_EQ(HealthOf(server, "liveness"), HealthCheckResponse::SERVING);  // idle is not hanging
  Reply waiting;
  std::thread client([&] {
    Eventually([&] { return steps.load() > 20; });
    waiting = server.Generate(GreedyRequest(4, 2));
  });
  const Reply reply = server.Generate(GreedyRequest(4, 200));
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(ReasonOf(reply.status), "ENGINE_FAULT");
  EXPECT_GT(reply.Tokens().size(), 0u);
  EXPECT_EQ(MetadataOf(reply.status, "tokens_sent"), std::to_string(reply.Tokens().size()));
  client.join();
  EXPECT_EQ(waiting.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonOf(waiting.status), "ENGINE_DOWN");
  server.server().WaitForDrainOrFault();
  EXPECT_TRUE(server.server().engines_down());
  EXPECT_EQ(HealthOf(server, ""), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(HealthOf(server, "model/fake"), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(HealthOf(server, "liveness"), HealthCheckResponse::NOT_SERVING);
  hangs.store(false);  // it comes back: nobody hears of it, and it is not taken back
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_EQ(HealthOf(server, "liveness"), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(ReasonOf(server.Generate(GreedyRequest(4, 1)).status), "ENGINE_DOWN");
}

TEST(HealthTest, ServesOnWhenOneEngineOfTwoHangs) {
  std::atomic<bool> hangs{true};
  std::atomic<int> steps{0};
  TestServer::Options options = SlowSteps();
  options.num_engines = 2;
  options.server.hang_timeout = milliseconds(300);
  options.runner.on_wait = [&] {
    std::this_thread::sleep_for(milliseconds(2));
    if (steps.fetch_add(1) != 40) return;
    while (hangs.load()) std::this_thread::sleep_for(milliseconds(1));
  };
  TestServer server(options);
  Reply replies[2];
  std::thread clients[2];
  for (int i = 0; i < 2; ++i) {
    clients[i] = std::thread([&, i] { replies[i] = server.Generate(GreedyRequest(4, 300)); });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_NE(replies[0].status.ok(), replies[1].status.ok());
  EXPECT_EQ(ReasonOf(replies[replies[0].status.ok() ? 1 : 0].status), "ENGINE_FAULT");
  EXPECT_EQ(HealthOf(server, ""), HealthCheckResponse::SERVING);
  EXPECT_EQ(HealthOf(server, "liveness"), HealthCheckResponse::SERVING);
  EXPECT_FALSE(server.server().engines_down());
  EXPECT_TRUE(server.Generate(GreedyRequest(4, 20)).status.ok());
  hangs.store(false);
}

// A reader that stalls leaves the engine with work that nobody may do.
TEST(HealthTest, PausedWorkIsNoHang) {
  TestServer::Options options;
  options.piece_bytes = 1024;
  options.max_context = 8192;
  options.limits.num_pages = 1025;
  options.server.hang_timeout = milliseconds(1500);
  TestServer server(options);
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, GreedyRequest(5, 4000));
  std::this_thread::sleep_for(milliseconds(3500));
  EXPECT_EQ(HealthOf(server, "liveness"), HealthCheckResponse::SERVING);
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

TEST(HealthTest, WatchFollows) {
  TestServer::Options options;
  options.serve = false;
  TestServer server(options);
  grpc::ClientContext context, model_context;
  HealthCheckRequest request;
  HealthCheckResponse response;
  auto watch = server.health().Watch(&context, request);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  request.set_service("model/fake");
  auto model_watch = server.health().Watch(&model_context, request);
  ASSERT_TRUE(model_watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  server.Serve();
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  do {  // the name may become known before the model is ready
    ASSERT_TRUE(model_watch->Read(&response));
  } while (response.status() != HealthCheckResponse::SERVING);
  server.server().BeginDrain();
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  server.server().Shutdown();
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(HealthTest, CapsWatches) {
  TestServer server;
  HealthCheckRequest request;
  HealthCheckResponse response;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<HealthCheckResponse>>> watches;
  for (int i = 0; i < 65; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    watches.push_back(server.health().Watch(contexts.back().get(), request));
    ASSERT_EQ(watches.back()->Read(&response), i < 64) << i;
  }
  EXPECT_EQ(watches.back()->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  for (int i = 0; i < 64; ++i) {
    contexts[static_cast<size_t>(i)]->TryCancel();
    EXPECT_FALSE(watches[static_cast<size_t>(i)]->Read(&response));
    watches[static_cast<size_t>(i)]->Finish();
  }
  EXPECT_EQ(HealthOf(server, ""), HealthCheckResponse::SERVING);
}

TEST(LifecycleTest, AnswersLoadingUntilServe) {
  TestServer::Options options;
  options.serve = false;
  TestServer server(options);
  const Reply early = server.Generate(GreedyRequest(3, 1));
  EXPECT_EQ(early.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonOf(early.status), "LOADING");
  EXPECT_TRUE(RetrySecondsOf(early.status).has_value());
  grpc::ClientContext context;
  v1::Model model;
  EXPECT_EQ(ReasonOf(server.stub().GetModel(&context, v1::GetModelRequest(), &model)), "LOADING");
  server.Serve();
  EXPECT_TRUE(server.Generate(GreedyRequest(3, 1)).status.ok());
}

TEST(LifecycleTest, DrainsWithoutLosingACall) {
  TestServer server(SlowSteps());
  std::vector<std::thread> clients;
  std::vector<Reply> replies(8);
  for (size_t i = 0; i < replies.size(); ++i) {
    clients.emplace_back([&, i] { replies[i] = server.Generate(GreedyRequest(4, 100)); });
  }
  ASSERT_TRUE(Eventually([&] { return server.stats().generation_tokens.load() > 8; }));
  server.server().BeginDrain();
  const Reply late = server.Generate(GreedyRequest(4, 1));
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonOf(late.status), "DRAINING");
  grpc::ClientContext context;
  v1::TokenizeResponse tokens;
  const grpc::Status tokenize = server.stub().Tokenize(&context, v1::TokenizeRequest(), &tokens);
  EXPECT_EQ(tokenize.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonOf(tokenize), "DRAINING");
  EXPECT_FALSE(RetrySecondsOf(late.status).has_value());
  EXPECT_TRUE(server.server().WaitForDrain());
  for (std::thread& client : clients) client.join();
  for (const Reply& reply : replies) {
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
    EXPECT_EQ(reply.Tokens().size(), 100u);
  }
}

TEST(LifecycleTest, TakesCallsWhileItIsALameDuck) {
  TestServer::Options options;
  options.server.lame_duck = milliseconds(400);
  TestServer server(options);
  server.server().BeginDrain();
  EXPECT_EQ(HealthOf(server, ""), HealthCheckResponse::NOT_SERVING);
  EXPECT_TRUE(server.Generate(GreedyRequest(4, 1)).status.ok());
  EXPECT_TRUE(server.server().WaitForDrain());
  EXPECT_EQ(ReasonOf(server.Generate(GreedyRequest(4, 1)).status), "DRAINING");
}

TEST(LifecycleTest, CutsWhatOutlastsTheDrain) {
  TestServer::Options options = SlowSteps();
  options.server.drain_timeout = milliseconds(100);
  TestServer server(options);
  Reply reply;
  std::thread client([&] { reply = server.Generate(GreedyRequest(4, 500)); });
  ASSERT_TRUE(Eventually([&] { return server.stats().generation_tokens.load() > 1; }));
  server.server().BeginDrain();
  EXPECT_FALSE(server.server().WaitForDrain());
  client.join();
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonOf(reply.status), "DRAINING");
  EXPECT_FALSE(RetrySecondsOf(reply.status).has_value());
  EXPECT_GT(reply.Tokens().size(), 0u);
}

// A status that waits behind what a reader never takes is the drain's: nobody calls that a cancel.
TEST(LifecycleTest, CutsAReaderThatNeverReadsForTheDrain) {
  std::ostringstream out;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "captured", std::make_shared<spdlog::sinks::ostream_sink_mt>(out)));
  {
    TestServer::Options options;
    options.access_log = true;
    options.piece_bytes = 1024;
    options.max_context = 4096;
    TestServer server(options);
    grpc::ClientContext context;
    auto reader = server.stub().Generate(&context, GreedyRequest(4, 3000));
    ASSERT_TRUE(Eventually([&] {
      const uint64_t made = server.stats().generation_tokens.load();
      std::this_thread::sleep_for(milliseconds(100));
      return made > 64 && server.stats().generation_tokens.load() == made;
    }));
    server.server().Shutdown();
    v1::GenerateResponse event;
    while (reader->Read(&event)) {
    }
    EXPECT_FALSE(reader->Finish().ok());
  }
  spdlog::set_default_logger(before);
  EXPECT_THAT(out.str(), HasSubstr("code=UNAVAILABLE reason=DRAINING"));
}

TEST(LifecycleTest, ADrainThatBeginsWhileTheModelLoadsIsTheLastWord) {
  TestServer::Options options;
  options.serve = false;
  TestServer server(options);
  server.server().BeginDrain();
  server.Serve();
  EXPECT_EQ(HealthOf(server, ""), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(HealthOf(server, "startup"), HealthCheckResponse::SERVING);
  EXPECT_EQ(ReasonOf(server.Generate(GreedyRequest(3, 1)).status), "DRAINING");
}

TEST(LifecycleTest, ShutdownEndsOpenStreamsWithAStatus) {
  TestServer server(SlowSteps());
  Reply reply;
  std::thread client([&] { reply = server.Generate(GreedyRequest(4, 500)); });
  ASSERT_TRUE(Eventually([&] { return server.stats().generation_tokens.load() > 1; }));
  const auto began = std::chrono::steady_clock::now();
  server.server().Shutdown();
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(2));
  client.join();
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonOf(reply.status), "DRAINING");
}

TEST(LifecycleTest, ShutsDownBesideAReaderThatNeverReads) {
  TestServer::Options options;
  options.piece_bytes = 1024;
  options.max_context = 4096;
  TestServer server(options);
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, GreedyRequest(4, 3000));
  // The reader's window takes 64 KiB and as much waits for it: then the engine makes no more.
  ASSERT_TRUE(Eventually([&] {
    const uint64_t made = server.stats().generation_tokens.load();
    std::this_thread::sleep_for(milliseconds(100));
    return made > 64 && server.stats().generation_tokens.load() == made;
  }));
  const auto began = std::chrono::steady_clock::now();
  server.server().Shutdown();
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(6));
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST(LifecycleTest, ReportsAnEngineFaultBeforeAndAfterTheFirstToken) {
  TestServer::Options options = SlowSteps();
  options.runner.fail_at = 20;
  TestServer server(options);
  const Reply after = server.Generate(GreedyRequest(4, 100));
  EXPECT_EQ(after.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(ReasonOf(after.status), "ENGINE_FAULT");
  EXPECT_EQ(MetadataOf(after.status, "tokens_sent"), std::to_string(after.Tokens().size()));
  EXPECT_GT(after.Tokens().size(), 0u);
  server.server().WaitForDrainOrFault();
  EXPECT_TRUE(server.server().engines_down());
  EXPECT_EQ(HealthOf(server, ""), HealthCheckResponse::NOT_SERVING);
  const Reply later = server.Generate(GreedyRequest(4, 1));
  EXPECT_EQ(later.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonOf(later.status), "ENGINE_DOWN");
  EXPECT_FALSE(RetrySecondsOf(later.status).has_value());

  options.runner.fail_at = 1;
  TestServer broken(options);
  const Reply before = broken.Generate(GreedyRequest(4, 100));
  EXPECT_EQ(before.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonOf(before.status), "ENGINE_DOWN");
  EXPECT_TRUE(before.events.empty());
  EXPECT_FALSE(broken.server().WaitForDrain());
}

TEST(LifecycleTest, ReportsNonFiniteLogitsAndServesTheNext) {
  TestServer::Options options;
  options.runner.finite = [](const engine::FakeContext& context) {
    return context.tokens.size() != 9 || context.tokens[0] != 77;
  };
  TestServer server(options);
  server.ExpectCanary();
  v1::GenerateRequest request = GreedyRequest(4, 100);
  request.mutable_token_ids()->set_ids(0, 77);
  const Reply reply = server.Generate(request);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(ReasonOf(reply.status), "NON_FINITE_LOGITS");
  EXPECT_EQ(reply.Tokens().size(), 5u);
  server.ExpectCanary();
}

TEST(LifecycleTest, ReflectsOnlyWhenAsked) {
  const std::string method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  TestServer closed;
  EXPECT_EQ(closed.RawCall(method, "").error_code(), grpc::StatusCode::UNIMPLEMENTED);
  TestServer::Options options;
  options.server.reflection = true;
  TestServer open(options);
  EXPECT_TRUE(open.RawCall(method, "").ok());
}

TEST(LifecycleTest, RefusesAPortInUseAndBadAddresses) {
  TestServer first;
  ServerOptions options;
  options.listen = "127.0.0.1:" + std::to_string(first.server().port());
  const auto second = Server::Start(options);
  EXPECT_TRUE(absl::IsUnavailable(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(options.listen));
  for (const char* bad :
       {"", "localhost", ":50051", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536"}) {
    options.listen = bad;
    EXPECT_TRUE(absl::IsInvalidArgument(Server::Start(options).status())) << bad;
  }
  options.listen = "no-such-host.invalid:50051";
  const auto nowhere = Server::Start(options);
  EXPECT_TRUE(absl::IsUnavailable(nowhere.status())) << nowhere.status();
  EXPECT_THAT(std::string(nowhere.status().message()), HasSubstr("DNS"));
  first.ExpectCanary();
}

}  // namespace
}  // namespace sluice::server
