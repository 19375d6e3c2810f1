#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "server/text_pool.h"
#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

// A runner that takes `pause` a step.
TestServer::Options SlowSteps(milliseconds pause) {
  TestServer::Options options;
  options.runner.on_wait = [pause] { std::this_thread::sleep_for(pause); };
  return options;
}

// A call that is open until it is told to end; reads its first delta.
class OpenCall {
 public:
  OpenCall(TestServer& server, const v1::GenerateRequest& request) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    reader_ = server.stub().Generate(&context_, request);
  }
  bool ReadUntilDelta() {
    v1::GenerateResponse event;
    while (reader_->Read(&event)) {
      if (event.has_delta()) return true;
    }
    return false;
  }
  grpc::Status End() {
    v1::GenerateResponse event;
    while (reader_->Read(&event)) {
    }
    return reader_->Finish();
  }
  grpc::Status Cancel() {
    context_.TryCancel();
    return End();
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
};

TEST(GenerateTest, StreamsTheEventsInOrder) {
  TestServer server;
  v1::GenerateRequest request = GreedyRequest(5, 12);
  request.set_request_id("mine");
  const Reply reply = server.Generate(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  ASSERT_GE(reply.events.size(), 4u);
  for (size_t i = 0; i < reply.events.size(); ++i) EXPECT_EQ(reply.events[i].event_seq(), i);
  ASSERT_NE(reply.accepted(), nullptr);
  EXPECT_EQ(reply.accepted()->request_id(), "mine");
  EXPECT_EQ(reply.accepted()->model(), "fake");
  EXPECT_EQ(reply.accepted()->prompt_tokens(), 5);
  EXPECT_EQ(reply.accepted()->provenance().build(), "test build");
  EXPECT_EQ(reply.accepted()->provenance().weights_digest(), "0123");
  for (size_t i = 1; i + 2 < reply.events.size(); ++i) EXPECT_TRUE(reply.events[i].has_delta());
  EXPECT_EQ(reply.Tokens().size(), 12u);
  EXPECT_EQ(reply.Text().size(), 12u);
  const auto& end = reply.events[reply.events.size() - 2];
  ASSERT_TRUE(end.has_sequence_finished());
  EXPECT_EQ(end.sequence_finished().finish_reason(), v1::FINISH_REASON_LENGTH);
  ASSERT_NE(reply.finished(), nullptr);
  EXPECT_EQ(reply.finished()->usage().prompt_tokens(), 5);
  EXPECT_EQ(reply.finished()->usage().completion_tokens(), 12);
  EXPECT_EQ(reply.finished()->kv().page_tokens(), 16);
  EXPECT_GT(reply.finished()->timing().total(), 0);
  EXPECT_TRUE(server.WaitUntilQuiet());
}

TEST(GenerateTest, RepeatsACallFromItsEcho) {
  TestServer server;
  v1::GenerateRequest request;
  request.set_text("an odd little prompt");
  request.mutable_sampling()->set_top_k(40);
  request.mutable_stopping()->set_max_tokens(20);
  request.mutable_stopping()->add_stop_token_ids(255);
  request.mutable_output()->set_return_token_ids(true);
  request.mutable_output()->set_logprobs(3);
  const Reply first = server.Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  const v1::Accepted& echo = *first.accepted();
  EXPECT_TRUE(echo.sampling().has_seed());
  v1::GenerateRequest again;
  again.set_text(request.text());
  *again.mutable_sampling() = echo.sampling();
  *again.mutable_stopping() = echo.stopping();
  *again.mutable_output() = echo.output();
  again.set_add_special(echo.add_special());
  again.set_parse_special(echo.parse_special());
  const Reply second = server.Generate(again);
  ASSERT_TRUE(second.status.ok()) << second.status.error_message();
  EXPECT_EQ(first.Tokens(), second.Tokens());
  EXPECT_EQ(first.Text(), second.Text());
  EXPECT_EQ(second.accepted()->sampling().SerializeAsString(), echo.sampling().SerializeAsString());
  EXPECT_EQ(second.accepted()->stopping().SerializeAsString(), echo.stopping().SerializeAsString());
  EXPECT_EQ(second.accepted()->output().SerializeAsString(), echo.output().SerializeAsString());
  // Without the echo the seed is another one.
  EXPECT_NE(server.Generate(request).Tokens(), first.Tokens());
}

v1::FinishReason EndOf(const Reply& reply) {
  for (const auto& event : reply.events) {
    if (event.has_sequence_finished()) return event.sequence_finished().finish_reason();
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

TEST(GenerateTest, ResolvesMaxTokensToWhatIsLeft) {
  TestServer::Options options;
  options.server.max_tokens_cap = 30;
  TestServer server(options);
  v1::GenerateRequest request = GreedyRequest(500, 1);
  request.mutable_stopping()->clear_max_tokens();
  Reply reply = server.Generate(request);
  EXPECT_EQ(reply.accepted()->stopping().max_tokens(), 12);  // context 512
  EXPECT_EQ(reply.Tokens().size(), 12u);
  EXPECT_EQ(EndOf(reply), v1::FINISH_REASON_CONTEXT);
  request = GreedyRequest(500, 12);
  EXPECT_EQ(EndOf(server.Generate(request)), v1::FINISH_REASON_LENGTH);
  request = GreedyRequest(5, 1);
  request.mutable_stopping()->clear_max_tokens();
  reply = server.Generate(request);
  EXPECT_EQ(reply.accepted()->stopping().max_tokens(), 30);
  EXPECT_EQ(EndOf(reply), v1::FINISH_REASON_LENGTH);
  request.mutable_stopping()->set_max_tokens(31);
  EXPECT_THAT(FieldsOf(server.Generate(request).status),
              testing::ElementsAre("stopping.max_tokens"));
}

TEST(GenerateTest, StreamsSeveralSequences) {
  TestServer server;
  v1::GenerateRequest request = GreedyRequest(5, 10);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_n(3);
  const Reply reply = server.Generate(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  std::set<int> ended;
  for (const auto& event : reply.events) {
    if (event.has_sequence_finished()) ended.insert(event.sequence_finished().index());
  }
  EXPECT_EQ(ended, (std::set<int>{0, 1, 2}));
  std::set<std::vector<int32_t>> outputs;
  for (int index = 0; index < 3; ++index) {
    EXPECT_EQ(reply.Tokens(index).size(), 10u);
    outputs.insert(reply.Tokens(index));
  }
  EXPECT_EQ(outputs.size(), 3u);
  EXPECT_EQ(reply.finished()->usage().completion_tokens(), 30);
}

TEST(GenerateTest, TellsWhatMatched) {
  TestServer server;
  const Reply plain = server.Generate(GreedyRequest(5, 10));
  v1::GenerateRequest request = GreedyRequest(5, 10);
  const std::string stop = plain.Text().substr(3, 2);
  request.mutable_stopping()->add_stop(stop);
  const Reply reply = server.Generate(request);
  ASSERT_TRUE(reply.status.ok());
  const auto& end = reply.events[reply.events.size() - 2].sequence_finished();
  EXPECT_EQ(end.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(end.matched_stop(), stop);
  EXPECT_EQ(reply.Text(), plain.Text().substr(0, plain.Text().find(stop)));
}

TEST(GenerateTest, ReportsProgressOfTheQueueAndThePrompt) {
  TestServer server(SlowSteps(milliseconds(5)));
  v1::GenerateRequest request = GreedyRequest(200, 2);  // four steps of 64 tokens
  request.mutable_output()->set_report_progress(true);
  const Reply reply = server.Generate(request);
  ASSERT_TRUE(reply.status.ok());
  EXPECT_TRUE(reply.events[0].has_accepted());
  std::vector<int> done;
  for (const auto& event : reply.events) {
    if (event.has_progress()) done.push_back(event.progress().prompt_tokens_done());
  }
  ASSERT_GE(done.size(), 2u);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(done.back(), 200);
}

TEST(GenerateTest, TellsWhoWaitsItsPlaceInTheQueue) {
  TestServer::Options options = SlowSteps(milliseconds(5));
  options.limits.max_batch = 1;
  TestServer server(options);
  OpenCall running(server, GreedyRequest(5, 400));
  ASSERT_TRUE(running.ReadUntilDelta());
  OpenCall next(server, GreedyRequest(5, 5));
  ASSERT_TRUE(Eventually([&] { return server.stats().requests_waiting.load() == 1; }));
  v1::GenerateRequest request = GreedyRequest(5, 2);
  request.mutable_output()->set_report_progress(true);
  grpc::ClientContext context;
  const auto reader = server.stub().Generate(&context, request);
  v1::GenerateResponse event;
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.accepted().queue_position(), 1);
  std::vector<int> places;
  while (reader->Read(&event)) {
    if (!event.has_progress()) continue;
    places.push_back(event.progress().queue_position());
    if (places.size() == 1) running.Cancel();
  }
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_GE(places.size(), 2u);
  EXPECT_EQ(places.front(), 1);
  EXPECT_EQ(places.back(), 0);
  EXPECT_TRUE(next.End().ok());
}

TEST(GenerateTest, TokenisesLongTextsOffTheGrpcThreads) {
  TestServer::Options options;
  options.max_context = 16'384;
  options.limits.num_pages = 1200;
  options.limits.max_step_tokens = 4096;
  TestServer server(options);
  v1::GenerateRequest request;
  request.set_text(std::string(9000, 't'));
  request.mutable_stopping()->set_max_tokens(3);
  const Reply reply = server.Generate(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.accepted()->prompt_tokens(), 9000);
  request.set_text(std::string(20'000, 't'));
  EXPECT_THAT(FieldsOf(server.Generate(request).status), testing::ElementsAre("text"));
  EXPECT_TRUE(server.WaitUntilQuiet());
}

TEST(GenerateTest, RefusesALiveDuplicateAndTakesTheIdAgainAfterwards) {
  TestServer server(SlowSteps(milliseconds(2)));
  v1::GenerateRequest request = GreedyRequest(5, 400);
  request.set_request_id("twin");
  OpenCall first(server, request);
  ASSERT_TRUE(first.ReadUntilDelta());
  const Reply second = server.Generate(request);
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(ReasonOf(second.status), "DUPLICATE_REQUEST");
  EXPECT_TRUE(second.events.empty());
  EXPECT_TRUE(first.End().ok());
  request.mutable_stopping()->set_max_tokens(2);
  EXPECT_TRUE(server.Generate(request).status.ok());
}

// Steps that wait until they may go on.
class HeldSteps {
 public:
  std::function<void()> Hold() {
    return [this] {
      while (held_.load()) std::this_thread::sleep_for(milliseconds(1));
    };
  }
  void Release() { held_.store(false); }

 private:
  std::atomic<bool> held_{true};
};

// A call that its client has cancelled is no live call, though an engine may still have it.
TEST(GenerateTest, TakesTheIdOfACancelledCallBeforeTheEngineHasSeenTheCancel) {
  HeldSteps steps;
  TestServer::Options options;
  options.runner.on_wait = steps.Hold();
  TestServer server(options);
  v1::GenerateRequest request = GreedyRequest(5, 400);
  request.set_request_id("twin");
  OpenCall first(server, request);
  ASSERT_TRUE(Eventually([&] { return server.stats().requests_running.load() == 1; }));
  EXPECT_EQ(server.Generate(request, milliseconds(1000)).status.error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
  first.Cancel();
  grpc::Status status;
  // The server learns of the cancel a moment after the client.
  EXPECT_TRUE(Eventually([&] {
    status = server.Generate(request, milliseconds(100)).status;
    return status.error_code() != grpc::StatusCode::ALREADY_EXISTS;
  }));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(server.stats().requests_running.load(), 1);  // still the first
  steps.Release();
  EXPECT_TRUE(server.WaitUntilQuiet());
}

// The lines that a server writes while this lives, its own server gone before they are read.
class CapturedLog {
 public:
  CapturedLog() : before_(spdlog::default_logger()) {
    auto logger = std::make_shared<spdlog::logger>(
        "captured", std::make_shared<spdlog::sinks::ostream_sink_mt>(out_));
    logger->set_pattern("%v");
    spdlog::set_default_logger(std::move(logger));
  }
  ~CapturedLog() { spdlog::set_default_logger(before_); }
  // The line of the call `id`, or nothing.
  std::string Line(const std::string& id) const {
    std::istringstream lines(out_.str());
    for (std::string line; std::getline(lines, line);) {
      if (line.find("id=\"" + id + "\"") != std::string::npos) return line;
    }
    return "";
  }

 private:
  std::shared_ptr<spdlog::logger> before_;
  std::ostringstream out_;
};

double Value(const std::string& line, const std::string& name) {
  const size_t at = line.find(" " + name + "=");
  return at == std::string::npos ? -1 : std::stod(line.substr(at + name.size() + 2));
}

TEST(GenerateTest, WritesNoTimeBeyondTheEndOfACancelledCall) {
  const CapturedLog log;
  {
    HeldSteps steps;
    TestServer::Options options;
    options.access_log = true;
    options.limits.max_batch = 1;
    options.runner.on_wait = steps.Hold();
    TestServer server(options);
    v1::GenerateRequest request = GreedyRequest(5, 3);
    request.set_request_id("runs");
    OpenCall running(server, request);
    ASSERT_TRUE(Eventually([&] { return server.stats().requests_running.load() == 1; }));
    request.set_request_id("waits");
    OpenCall waiting(server, request);
    std::this_thread::sleep_for(milliseconds(50));
    waiting.Cancel();
    std::this_thread::sleep_for(milliseconds(200));  // the engine has not seen the cancel yet
    steps.Release();
    EXPECT_TRUE(running.End().ok());
    EXPECT_TRUE(server.WaitUntilQuiet());
  }
  for (const char* id : {"runs", "waits"}) {
    const std::string line = log.Line(id);
    ASSERT_GE(Value(line, "total_s"), 0) << line;
    EXPECT_LE(Value(line, "queue_s"), Value(line, "total_s")) << line;
  }
  EXPECT_THAT(log.Line("waits"), HasSubstr("code=CANCELLED"));
  EXPECT_THAT(log.Line("runs"), HasSubstr("code=OK"));
}

TEST(GenerateTest, TellsWhenToRetryWhenTooManyTextsWait) {
  std::atomic<bool> held{true};
  TestServer::Options options;
  options.on_encode = [&held] {
    while (held.load()) std::this_thread::sleep_for(milliseconds(1));
  };
  TestServer server(options);
  v1::GenerateRequest request = GreedyRequest(4, 1);
  request.set_text(std::string(20'000, 't'));
  const int most = static_cast<int>(TextPool::kMaxJobs) + 4;  // waiting, and in at most 4 threads
  std::vector<std::unique_ptr<OpenCall>> calls;
  for (int i = 0; i < most; ++i) calls.push_back(std::make_unique<OpenCall>(server, request));
  Reply refused;
  EXPECT_TRUE(Eventually([&] {
    refused = server.Generate(request, milliseconds(200));
    return refused.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
  }));
  EXPECT_EQ(ReasonOf(refused.status), "QUEUE_FULL");
  EXPECT_THAT(refused.status.error_message(), HasSubstr("texts"));
  EXPECT_TRUE(RetrySecondsOf(refused.status).has_value());
  EXPECT_TRUE(server.Generate(GreedyRequest(4, 2)).status.ok());  // needs no text thread
  held.store(false);
  for (auto& call : calls) {  // longer than the context
    EXPECT_NE(call->End().error_code(), grpc::StatusCode::OK);
  }
  EXPECT_TRUE(server.WaitUntilQuiet());
}

TEST(GenerateTest, GivesThePagesBackWhenTheClientCancels) {
  TestServer server(SlowSteps(milliseconds(2)));
  server.ExpectCanary();
  for (int i = 0; i < 20; ++i) {
    OpenCall call(server, GreedyRequest(20, 400));
    ASSERT_TRUE(i % 2 == 1 || call.ReadUntilDelta());
    EXPECT_EQ(call.Cancel().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(server.WaitUntilQuiet());
  EXPECT_GT(server.stats().cancelled_running.load() + server.stats().cancelled_waiting.load(), 0u);
  EXPECT_LT(server.stats().generation_tokens.load(), 20u * 400u);
  server.ExpectCanary();
}

TEST(GenerateTest, EndsWhenTheDeadlinePasses) {
  TestServer server(SlowSteps(milliseconds(5)));
  server.ExpectCanary();
  const Reply running = server.Generate(GreedyRequest(5, 400), milliseconds(150));
  EXPECT_EQ(running.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(server.WaitUntilQuiet());
  const auto steps = server.stats().steps.load();
  const Reply past = server.Generate(GreedyRequest(5, 400), milliseconds(-100));
  EXPECT_EQ(past.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(server.stats().steps.load(), steps);
  server.ExpectCanary();
}

TEST(GenerateTest, EndsTheSequencesAndNotTheCallAfterMaxTime) {
  TestServer server(SlowSteps(milliseconds(5)));
  v1::GenerateRequest request = GreedyRequest(5, 400);
  request.mutable_stopping()->mutable_max_time()->set_nanos(100'000'000);
  const Reply reply = server.Generate(request);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.events[reply.events.size() - 2].sequence_finished().finish_reason(),
            v1::FINISH_REASON_DEADLINE);
  EXPECT_LT(reply.Tokens().size(), 400u);
}

TEST(GenerateTest, TellsWhenToRetryWhenTheQueueIsFull) {
  TestServer::Options options = SlowSteps(milliseconds(5));
  options.limits.max_batch = 1;
  options.limits.max_queue = 1;
  TestServer server(options);
  OpenCall running(server, GreedyRequest(5, 400));
  ASSERT_TRUE(running.ReadUntilDelta());
  OpenCall waiting(server, GreedyRequest(5, 1));
  ASSERT_TRUE(Eventually([&] { return server.stats().requests_waiting.load() == 1; }));
  const Reply refused = server.Generate(GreedyRequest(5, 1));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonOf(refused.status), "QUEUE_FULL");
  ASSERT_TRUE(RetrySecondsOf(refused.status).has_value());
  EXPECT_GT(*RetrySecondsOf(refused.status), 0);
  const auto pushback = refused.trailers.find("grpc-retry-pushback-ms");
  ASSERT_NE(pushback, refused.trailers.end());
  EXPECT_DOUBLE_EQ(std::stod(pushback->second) / 1000, *RetrySecondsOf(refused.status));
  EXPECT_EQ(running.Cancel().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(waiting.End().ok());
}

TEST(GenerateTest, EndsInTheQueueAfterQueueTimeout) {
  TestServer::Options options = SlowSteps(milliseconds(5));
  options.limits.max_batch = 1;
  TestServer server(options);
  OpenCall running(server, GreedyRequest(5, 400));
  ASSERT_TRUE(running.ReadUntilDelta());
  v1::GenerateRequest request = GreedyRequest(5, 1);
  request.mutable_scheduling()->mutable_queue_timeout()->set_nanos(50'000'000);
  const Reply reply = server.Generate(request);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(MetadataOf(reply.status, "tokens_sent"), "0");
  EXPECT_TRUE(reply.events.empty());  // not committed: a client may retry it by itself
  running.Cancel();
}

TEST(GenerateTest, RefusesMoreCallsThanMayBeOpen) {
  TestServer::Options options = SlowSteps(milliseconds(5));
  options.server.max_open_streams = 2;
  TestServer server(options);
  OpenCall first(server, GreedyRequest(5, 400));
  OpenCall second(server, GreedyRequest(5, 400));
  ASSERT_TRUE(first.ReadUntilDelta());
  ASSERT_TRUE(second.ReadUntilDelta());
  const Reply third = server.Generate(GreedyRequest(5, 1));
  EXPECT_EQ(third.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonOf(third.status), "QUEUE_FULL");
  first.Cancel();
  second.Cancel();
  EXPECT_TRUE(server.WaitUntilQuiet());
  EXPECT_TRUE(server.Generate(GreedyRequest(5, 1)).status.ok());
}

TEST(GenerateTest, ServesManyStreamsAtOnceEachAsIfAlone) {
  TestServer::Options options;
  options.limits.max_batch = 64;
  options.limits.num_pages = 1025;
  options.num_engines = 2;
  TestServer server(options);
  constexpr int kStreams = 64;
  std::vector<std::vector<int32_t>> alone(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    alone[static_cast<size_t>(i)] = server.Generate(GreedyRequest(3 + i, 60)).Tokens();
  }
  std::vector<Reply> together(kStreams);
  std::vector<std::thread> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back(
        [&, i] { together[static_cast<size_t>(i)] = server.Generate(GreedyRequest(3 + i, 60)); });
  }
  for (std::thread& client : clients) client.join();
  for (size_t i = 0; i < kStreams; ++i) {
    EXPECT_TRUE(together[i].status.ok()) << together[i].status.error_message();
    EXPECT_EQ(together[i].Tokens(), alone[i]);
    EXPECT_NE(together[i].finished(), nullptr);
  }
  EXPECT_TRUE(server.WaitUntilQuiet());
}

}  // namespace
}  // namespace sluice::server
