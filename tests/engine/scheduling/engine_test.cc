// Engines with their threads, and the dispatcher over them.

#include "engine/engine.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "tests/engine/scheduling/chunk_collector.h"
#include "tests/engine/scheduling/harness.h"

namespace sluice::engine {
namespace {

using std::chrono::milliseconds;
using testing::IsEmpty;

constexpr SchedulerLimits kLimits = {.depth = 0,
                                     .max_batch = 8,
                                     .max_step_tokens = 64,
                                     .max_queue = 64,
                                     .num_pages = 33,
                                     .max_context = 256};

std::unique_ptr<StepRunner> MakeRunner(int depth, Duration step_time,
                                       std::optional<uint64_t> fail_at = {},
                                       std::function<void()> on_wait = {}) {
  FakeRunner::Options options;
  options.depth = depth;
  options.num_pages = kLimits.num_pages;
  options.fail_at = fail_at;
  options.on_wait = std::move(on_wait);
  if (step_time > Duration::zero())
    options.on_wait = [step_time] { std::this_thread::sleep_for(step_time); };
  return std::make_unique<FakeRunner>(std::move(options));
}

SchedulerLimits Limits(int depth, int max_queue = kLimits.max_queue) {
  SchedulerLimits limits = kLimits;
  limits.depth = depth;
  limits.max_queue = max_queue;
  return limits;
}

struct EngineConfig {
  int depth = 0;
  Duration step_time{};
  std::optional<uint64_t> fail_at{};
  int max_queue = kLimits.max_queue;
  std::function<void()> on_wait{};  // without step_time
};

std::unique_ptr<Dispatcher> MakeDispatcher(const std::vector<EngineConfig>& configs,
                                           int num_lanes = 1) {
  auto chunks = std::make_unique<ChunkMailbox>(num_lanes);
  std::vector<std::unique_ptr<Engine>> engines;
  for (const EngineConfig& config : configs) {
    engines.push_back(std::make_unique<Engine>(
        static_cast<int>(engines.size()), Limits(config.depth, config.max_queue),
        MakeRunner(config.depth, config.step_time, config.fail_at, config.on_wait),
        FakeTokenizer::Make(), chunks.get()));
  }
  return std::make_unique<Dispatcher>(std::move(engines), std::move(chunks));
}

Request Timed(Request request) {
  request.arrival = SteadyClock().Now();
  return request;
}

void Collect(Dispatcher& dispatcher, ChunkCollector& collector, int num_ended) {
  const Time give_up = SteadyClock().Now() + std::chrono::seconds(60);
  while (collector.num_ended() < num_ended) {
    ASSERT_LT(SteadyClock().Now(), give_up);
    collector.Add(dispatcher.chunks().Take(0, SteadyClock().Now() + milliseconds(100)));
  }
}

// Idle is seen a moment after the last chunk, which is posted first.
void AwaitIdle(const Dispatcher& dispatcher) {
  const Time give_up = SteadyClock().Now() + std::chrono::seconds(10);
  while (!dispatcher.idle()) {
    ASSERT_LT(SteadyClock().Now(), give_up);
    std::this_thread::yield();
  }
}

std::vector<TokenId> Alone(const Request& request) {
  SchedulerHarness harness({});
  harness.Submit(request);
  harness.Finish();
  return harness.Outcome(request.handle.value).only().tokens;
}

TEST(EngineTest, OneEngineEqualsTwo) {
  for (const int num_engines : {1, 2}) {
    const auto dispatcher = MakeDispatcher(std::vector<EngineConfig>(num_engines));
    for (uint64_t i = 1; i <= 20; ++i)
      ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(i, 20, 40, i))).ok());
    ChunkCollector collector;
    Collect(*dispatcher, collector, 20);
    EXPECT_THAT(collector.violations(), IsEmpty());
    for (uint64_t i = 1; i <= 20; ++i)
      EXPECT_EQ(collector.Outcome(i).only().tokens, Alone(MakeRequest(i, 20, 40, i)));
    AwaitIdle(*dispatcher);
    for (const auto& engine : dispatcher->engines()) {
      EXPECT_GT(engine->stats().generation_tokens.load(), 0u);
      EXPECT_EQ(engine->load_tokens(), 0);
    }
  }
}

TEST(EngineTest, TheQueueIsBounded) {
  const auto dispatcher = MakeDispatcher({{.step_time = milliseconds(20), .max_queue = 3}});
  // A request that is refused stays whole.
  int accepted = 0;
  absl::Status refused;
  for (uint64_t i = 1; i <= 40; ++i) {
    Request request = Timed(MakeRequest(i, 20, 40));  // eight fit the pool: none is preempted
    const absl::Status status = dispatcher->Dispatch(std::move(request));
    accepted += status.ok();
    if (!status.ok()) {
      refused = status;
      EXPECT_EQ(request.prompt.size(), 20u);  // NOLINT(bugprone-use-after-move): by contract
    }
    EXPECT_LE(dispatcher->engines()[0]->stats().requests_waiting.load(), 3);
  }
  EXPECT_LT(accepted, 40);
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  Request wide = Timed(MakeRequest(50, 20, 100));
  wide.sampling.n = 4;
  EXPECT_TRUE(absl::IsInvalidArgument(dispatcher->Dispatch(std::move(wide))));
}

TEST(EngineTest, TheLeastLoadedEngineIsTaken) {
  const auto dispatcher =
      MakeDispatcher({{.step_time = milliseconds(2)}, {.step_time = milliseconds(2)}});
  ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(1, 150, 100))).ok());
  dispatcher->Pause(RequestHandle{1});  // its load stays
  ChunkCollector collector;
  for (uint64_t i = 2; i <= 4; ++i)
    ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(i, 4, 20))).ok());
  Collect(*dispatcher, collector, 3);
  dispatcher->Resume(RequestHandle{1});
  Collect(*dispatcher, collector, 4);
  EXPECT_EQ(dispatcher->engines()[0]->stats().prompt_tokens.load(), 150u);
  EXPECT_EQ(dispatcher->engines()[1]->stats().prompt_tokens.load(), 12u);
}

TEST(EngineTest, DrainRefusesAndFinishes) {
  const auto dispatcher = MakeDispatcher({{.step_time = milliseconds(1)}});
  ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(1, 20, 40))).ok());
  dispatcher->Pause(RequestHandle{1});
  dispatcher->Drain();
  EXPECT_TRUE(absl::IsUnavailable(dispatcher->Dispatch(Timed(MakeRequest(2, 20, 40)))));
  EXPECT_FALSE(dispatcher->idle());
  dispatcher->Resume(RequestHandle{1});
  ChunkCollector collector;
  Collect(*dispatcher, collector, 1);
  EXPECT_TRUE(collector.Outcome(1).end->status.ok());
  EXPECT_TRUE(dispatcher->any_up());
  AwaitIdle(*dispatcher);
}

TEST(EngineTest, ShutdownEndsWhatRuns) {
  for (const int depth : {0, 1}) {
    const auto dispatcher = MakeDispatcher({{.depth = depth, .step_time = milliseconds(5)}});
    for (uint64_t i = 1; i <= 12; ++i)
      ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(i, 20, 200, i))).ok());
    std::this_thread::sleep_for(milliseconds(10));
    dispatcher->Shutdown();
    dispatcher->Shutdown();
    EXPECT_TRUE(absl::IsUnavailable(dispatcher->Dispatch(Timed(MakeRequest(13, 20, 40)))));
    ChunkCollector collector;
    Collect(*dispatcher, collector, 12);
    EXPECT_THAT(collector.violations(), IsEmpty());
    for (uint64_t i = 1; i <= 12; ++i)
      EXPECT_TRUE(absl::IsUnavailable(collector.Outcome(i).end->status));
    const EngineStats& stats = dispatcher->engines()[0]->stats();
    EXPECT_EQ(stats.kv_pages_free.load(), stats.kv_pages_total.load());
    EXPECT_TRUE(dispatcher->idle());
  }
}

TEST(EngineTest, AnotherEngineServesOnAfterAFault) {
  const auto dispatcher = MakeDispatcher({{.fail_at = 3}, {}});
  ChunkCollector collector;
  ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(1, 20, 100))).ok());
  Collect(*dispatcher, collector, 1);
  EXPECT_EQ(collector.Outcome(1).end->error_reason, "ENGINE_FAULT");
  EXPECT_FALSE(dispatcher->engines()[0]->up());
  EXPECT_TRUE(dispatcher->any_up());
  ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(2, 20, 30))).ok());
  Collect(*dispatcher, collector, 2);
  EXPECT_TRUE(collector.Outcome(2).end->status.ok());
  EXPECT_EQ(dispatcher->engines()[1]->stats().generation_tokens.load(), 30u);
}

TEST(EngineTest, WithTheLastEngineDownNothingIsTaken) {
  const auto dispatcher = MakeDispatcher({{.fail_at = 1}});
  ChunkCollector collector;
  ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(1, 20, 100))).ok());
  Collect(*dispatcher, collector, 1);
  EXPECT_EQ(collector.Outcome(1).end->error_reason, "ENGINE_DOWN");
  EXPECT_FALSE(dispatcher->any_up());
  EXPECT_TRUE(absl::IsUnavailable(dispatcher->Dispatch(Timed(MakeRequest(2, 20, 100)))));
}

TEST(EngineTest, WhatAnAbandonedEngineHadEndsAndItsThreadMayComeBack) {
  std::atomic<bool> hangs{true};
  std::atomic<int> steps{0};
  const auto hang = [&] {
    if (steps.fetch_add(1) < 5) return;
    while (hangs.load()) std::this_thread::sleep_for(milliseconds(1));
  };
  const auto dispatcher = MakeDispatcher({{.on_wait = hang}, {}});
  const Engine& hung = *dispatcher->engines()[0];
  ChunkCollector collector;
  ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(1, 20, 100))).ok());
  while (steps.load() < 6) std::this_thread::yield();
  dispatcher->Abandon(0, "the engine makes no progress");
  EXPECT_TRUE(hung.lost());
  EXPECT_FALSE(hung.up());
  Collect(*dispatcher, collector, 1);
  EXPECT_EQ(collector.Outcome(1).end->error_reason, "ENGINE_FAULT");
  EXPECT_TRUE(absl::IsInternal(collector.Outcome(1).end->status));
  ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(2, 20, 30))).ok());
  Collect(*dispatcher, collector, 2);
  EXPECT_TRUE(collector.Outcome(2).end->status.ok());
  hangs.store(false);
  const Time give_up = SteadyClock().Now() + std::chrono::seconds(10);
  while (hung.lost() && SteadyClock().Now() < give_up) std::this_thread::yield();
  EXPECT_FALSE(hung.lost());
}

TEST(EngineTest, ShutdownDoesNotWaitForAnAbandonedThread) {
  std::atomic<bool> hangs{true};
  std::atomic<bool> reached{false};
  const auto hang = [&] {
    reached.store(true);
    while (hangs.load()) std::this_thread::sleep_for(milliseconds(1));
  };
  auto dispatcher = MakeDispatcher({{.on_wait = hang}});
  ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(1, 20, 100))).ok());
  while (!reached.load()) std::this_thread::yield();
  dispatcher->Abandon(0, "the engine makes no progress");
  dispatcher.reset();
  hangs.store(false);  // what the thread uses is still there
  std::this_thread::sleep_for(milliseconds(50));
}

TEST(EngineTest, AnExceptionEndsTheEngineAndNotTheProcess) {
  std::atomic<int> steps{0};
  const auto fail = [&] {
    if (steps.fetch_add(1) == 5) throw std::bad_alloc();
  };
  const auto dispatcher = MakeDispatcher({{.on_wait = fail}});
  const Engine& engine = *dispatcher->engines()[0];
  ChunkCollector collector;
  ASSERT_TRUE(dispatcher->Dispatch(Timed(MakeRequest(1, 20, 100))).ok());
  const Time give_up = SteadyClock().Now() + std::chrono::seconds(10);
  while (!engine.crashed() && SteadyClock().Now() < give_up) std::this_thread::yield();
  ASSERT_TRUE(engine.crashed());
  dispatcher->Abandon(0, "the engine broke off");
  Collect(*dispatcher, collector, 1);
  EXPECT_EQ(collector.Outcome(1).end->error_reason, "ENGINE_FAULT");
  EXPECT_FALSE(dispatcher->any_up());
}

// Many threads submit, cancel, pause and resume; each request ends once, and all pages come back.
TEST(EngineTest, StormOfSubmitsAndCancels) {
  constexpr int kThreads = 3;
  constexpr uint64_t kEach = 120;
  constexpr int kLanes = 2;
  const auto dispatcher = MakeDispatcher({{.depth = 0}, {.depth = 1}}, kLanes);
  std::atomic<int> accepted{0};
  std::atomic<int> ended{0};
  std::atomic<bool> all_submitted{false};
  std::vector<std::thread> submitters;
  for (int t = 0; t < kThreads; ++t) {
    submitters.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<uint64_t>(t));
      for (uint64_t i = 0; i < kEach; ++i) {
        const RequestHandle handle{static_cast<uint64_t>(t) * kEach + i};
        Request request = MakeRequest(handle.value, 1 + static_cast<int>(random() % 100),
                                      1 + static_cast<int>(random() % 100), handle.value);
        request.sampling.n = 1 + static_cast<int>(random() % 3);
        for (;;) {
          const absl::Status status = dispatcher->Dispatch(Timed(request));
          if (status.ok()) break;
          ASSERT_TRUE(absl::IsResourceExhausted(status)) << status;
          std::this_thread::yield();
        }
        accepted.fetch_add(1);
        if (random() % 4 == 0) dispatcher->Pause(handle);
        if (random() % 3 == 0) dispatcher->Cancel(handle, Cancelled("gone"));
        dispatcher->Resume(handle);
      }
    });
  }
  std::vector<ChunkCollector> collectors(kLanes);
  std::vector<std::thread> takers;
  for (int lane = 0; lane < kLanes; ++lane) {
    takers.emplace_back([&, lane] {
      ChunkCollector& collector = collectors[static_cast<size_t>(lane)];
      while (!all_submitted || ended < accepted) {
        std::vector<TokenChunk> chunks =
            dispatcher->chunks().Take(lane, SteadyClock().Now() + milliseconds(20));
        for (const TokenChunk& chunk : chunks) {
          if (chunk.request_end) dispatcher->Forget(chunk.request);
        }
        const int before = collector.num_ended();
        collector.Add(std::move(chunks));
        ended.fetch_add(collector.num_ended() - before);
      }
    });
  }
  for (std::thread& submitter : submitters) submitter.join();
  all_submitted = true;
  for (std::thread& taker : takers) taker.join();
  EXPECT_EQ(ended, accepted);
  EXPECT_EQ(accepted, kThreads * static_cast<int>(kEach));
  for (const ChunkCollector& collector : collectors) EXPECT_THAT(collector.violations(), IsEmpty());
  AwaitIdle(*dispatcher);
  dispatcher->Shutdown();
  for (const auto& engine : dispatcher->engines()) {
    EXPECT_EQ(engine->stats().kv_pages_free.load(), engine->stats().kv_pages_total.load());
    EXPECT_EQ(engine->stats().leaked_pages.load(), 0);
    EXPECT_EQ(engine->load_tokens(), 0);
  }
}

}  // namespace
}  // namespace sluice::engine
