#include "engine/engine_loop.h"

#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "tests/engine/scheduling/harness.h"

namespace sluice::engine {
namespace {

using std::chrono::milliseconds;
using testing::IsEmpty;

// A loop whose steps take `step_time` on a simulated clock.
class LoopFixture {
 public:
  explicit LoopFixture(int depth, FakeRunner::Options options = {}) {
    options.depth = depth;
    options.num_pages = 17;
    options.on_wait = [this] { clock.Advance(milliseconds(10)); };
    auto owned = std::make_unique<FakeRunner>(std::move(options));
    runner = owned.get();
    stats.up = true;
    loop = std::make_unique<EngineLoop>(SchedulerLimits{.depth = depth,
                                                        .max_batch = 8,
                                                        .max_step_tokens = 64,
                                                        .max_queue = 64,
                                                        .num_pages = 17,
                                                        .max_context = 256},
                                        std::move(owned), FakeTokenizer::Make(), &commands, &chunks,
                                        &stats, &load, &clock);
  }

  void Submit(Request request) {
    request.arrival = clock.Now();
    load.posted_sequences += request.sampling.n;
    load.posted_tokens += request.sampling.n * static_cast<int64_t>(request.prompt.size());
    ASSERT_TRUE(commands.Post(SubmitCommand{std::move(request)}).ok());
  }
  // False when the loop is over.
  bool Step() {
    const bool more = loop->Step(/*may_block=*/false);
    collector.Add(chunks.Take(0, std::chrono::steady_clock::now()));
    return more;
  }
  void RunUntilEnded(int requests) {
    for (int i = 0; i < 10000 && collector.num_ended() < requests; ++i) ASSERT_TRUE(Step());
    Step();  // what was in flight at depth 1
    EXPECT_EQ(collector.num_ended(), requests);
    EXPECT_THAT(collector.violations(), IsEmpty());
    EXPECT_THAT(runner->violations(), IsEmpty());
  }

  SimulatedClock clock;
  CommandMailbox commands{64};
  ChunkMailbox chunks{1};
  EngineStats stats;
  EngineLoad load;
  FakeRunner* runner = nullptr;
  std::unique_ptr<EngineLoop> loop;
  ChunkCollector collector;
};

class EngineLoopTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Depth, EngineLoopTest, testing::Values(0, 1),
                         [](const auto& info) { return "Depth" + std::to_string(info.param); });

TEST_P(EngineLoopTest, RunsRequestsToTheirEnds) {
  LoopFixture fixture(GetParam());
  for (uint64_t i = 1; i <= 5; ++i) fixture.Submit(MakeRequest(i, 20, 30, i));
  EXPECT_EQ(fixture.load.posted_sequences.load(), 5);
  fixture.RunUntilEnded(5);
  for (uint64_t i = 1; i <= 5; ++i) {
    SchedulerHarness alone({});
    alone.Submit(MakeRequest(i, 20, 30, i));
    alone.Finish();
    EXPECT_EQ(fixture.collector.Outcome(i).only().tokens, alone.Outcome(i).only().tokens);
  }
  EXPECT_EQ(fixture.load.posted_sequences.load(), 0);
  EXPECT_EQ(fixture.load.posted_tokens.load(), 0);
  EXPECT_EQ(fixture.load.live_sequences.load(), 0);
  EXPECT_EQ(fixture.load.live_tokens.load(), 0);
  EXPECT_EQ(fixture.stats.kv_pages_free.load(), 16);
  EXPECT_EQ(fixture.stats.kv_pages_total.load(), 16);
  EXPECT_EQ(fixture.stats.leaked_pages.load(), 0);
  EXPECT_EQ(fixture.stats.generation_tokens.load(), 150u);
  EXPECT_EQ(fixture.stats.prompt_tokens.load(), 100u);
  EXPECT_EQ(fixture.stats.steps.load(), fixture.runner->steps());
}

TEST_P(EngineLoopTest, StatsSayWhatIsGoingOn) {
  LoopFixture fixture(GetParam());
  for (uint64_t i = 1; i <= 2; ++i) fixture.Submit(MakeRequest(i, 4, 120, i));
  for (int i = 0; i < 110; ++i) ASSERT_TRUE(fixture.Step());
  EXPECT_EQ(fixture.stats.requests_running.load(), 2);
  EXPECT_EQ(fixture.load.live_sequences.load(), 2);
  EXPECT_NEAR(fixture.stats.tokens_per_second.load(), 200, 5);  // two each 10 ms
  EXPECT_NEAR(fixture.stats.step_duration.Read().sum, 1.1, 0.05);
  EXPECT_EQ(fixture.stats.last_step_nanos.load(),
            std::chrono::nanoseconds(fixture.clock.Now().time_since_epoch()).count());
  EXPECT_DOUBLE_EQ(fixture.stats.step_host_gap.Read().sum, 0);  // the clock stands still between
  EXPECT_GT(fixture.stats.batch_rows.Read().sum, 216);
}

// Behind a step in flight the device's own clock says how long it paused; the host's cannot.
TEST_P(EngineLoopTest, TheHostGapIsTheDevicesPause) {
  LoopFixture fixture(GetParam(), {.idle_before = std::chrono::microseconds(300)});
  fixture.Submit(MakeRequest(1, 4, 20));
  for (int i = 0; i < 11; ++i) ASSERT_TRUE(fixture.Step());
  const StatHistogram::Snapshot gaps = fixture.stats.step_host_gap.Read();
  uint64_t count = 0;
  for (const uint64_t bucket : gaps.counts) count += bucket;
  // At depth 1 the first step follows none and the eleventh is in flight.
  EXPECT_EQ(count, GetParam() == 0 ? 10u : 9u);
  EXPECT_NEAR(gaps.sum, GetParam() == 0 ? 0.0 : 9 * 0.0003, 1e-9);
}

TEST_P(EngineLoopTest, ClosingEndsWhatIsLeft) {
  LoopFixture fixture(GetParam());
  fixture.Submit(MakeRequest(1, 20, 100));
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(fixture.Step());
  fixture.Submit(MakeRequest(2, 20, 100));
  fixture.commands.Close();
  int steps = 0;
  while (fixture.Step()) ASSERT_LT(++steps, 3);
  EXPECT_EQ(fixture.collector.num_ended(), 2);
  for (const uint64_t handle : {1, 2}) {
    const RequestOutcome& outcome = fixture.collector.Outcome(handle);
    EXPECT_TRUE(absl::IsUnavailable(outcome.end->status));
    EXPECT_EQ(outcome.end->error_reason, "DRAINING");
  }
  EXPECT_EQ(fixture.stats.kv_pages_free.load(), 16);
  EXPECT_EQ(fixture.load.posted_sequences.load(), 0);
}

TEST_P(EngineLoopTest, AFaultTakesTheEngineDownAndTheLoopGoesOn) {
  LoopFixture fixture(GetParam(), {.fail_at = 5});
  fixture.Submit(MakeRequest(1, 20, 100));
  fixture.RunUntilEnded(1);
  EXPECT_EQ(fixture.collector.Outcome(1).end->error_reason, "ENGINE_FAULT");
  EXPECT_FALSE(fixture.stats.up.load());
  fixture.Submit(MakeRequest(2, 20, 100));
  fixture.RunUntilEnded(2);
  EXPECT_EQ(fixture.collector.Outcome(2).end->error_reason, "ENGINE_DOWN");
}

TEST_P(EngineLoopTest, NonFiniteLogitsEndARequestAndTheLoopGoesOn) {
  LoopFixture fixture(GetParam(), {.finite = [](const FakeContext& context) {
                        return context.slot.prompt.size() != 7 || context.position < 12;
                      }});
  fixture.Submit(MakeRequest(1, 7, 100));
  fixture.Submit(MakeRequest(2, 20, 40, 2));
  fixture.RunUntilEnded(2);
  EXPECT_EQ(fixture.collector.Outcome(1).end->error_reason, "NON_FINITE_LOGITS");
  EXPECT_EQ(fixture.collector.Outcome(1).only().tokens.size(), 5u);
  EXPECT_TRUE(fixture.stats.up.load());
  SchedulerHarness alone({});
  alone.Submit(MakeRequest(2, 20, 40, 2));
  alone.Finish();
  EXPECT_EQ(fixture.collector.Outcome(2).only().tokens, alone.Outcome(2).only().tokens);
  EXPECT_EQ(fixture.stats.kv_pages_free.load(), 16);
  EXPECT_EQ(fixture.stats.leaked_pages.load(), 0);
}

TEST_P(EngineLoopTest, SleepsWhileItIsIdleAndTellsTheRunner) {
  LoopFixture fixture(GetParam());
  std::thread poster([&] {
    std::this_thread::sleep_for(milliseconds(20));
    ASSERT_TRUE(fixture.commands.Post(DrainCommand{}).ok());
  });
  EXPECT_TRUE(fixture.loop->Step(/*may_block=*/true));
  poster.join();
  EXPECT_EQ(fixture.runner->idle_calls(), 1);
  EXPECT_EQ(fixture.runner->steps(), 0u);
}

TEST(EngineLoopClockTest, WakesForADeadlineWhileAllIsPaused) {
  SteadyClock clock;
  CommandMailbox commands(4);
  ChunkMailbox chunks(1);
  EngineStats stats;
  EngineLoad load;
  EngineLoop loop({.max_batch = 8, .max_step_tokens = 64, .num_pages = 16, .max_context = 64},
                  std::make_unique<FakeRunner>(FakeRunner::Options{}), nullptr, &commands, &chunks,
                  &stats, &load, &clock);
  Request request = MakeRequest(1, 4, 4);
  const Time begin = clock.Now();
  request.arrival = begin;
  request.deadline = begin + milliseconds(60);
  ASSERT_TRUE(commands.Post(SubmitCommand{std::move(request)}).ok());
  ASSERT_TRUE(commands.Post(PauseCommand{RequestHandle{1}}).ok());
  ChunkCollector collector;
  for (int turns = 0; collector.num_ended() == 0; ++turns) {
    ASSERT_LT(turns, 5);  // it sleeps; it does not spin
    ASSERT_TRUE(loop.Step(/*may_block=*/true));
    collector.Add(chunks.Take(0, clock.Now()));
  }
  EXPECT_TRUE(absl::IsDeadlineExceeded(collector.Outcome(1).end->status));
  EXPECT_GE(clock.Now() - begin, milliseconds(60));
  EXPECT_LT(clock.Now() - begin, milliseconds(900));
}

}  // namespace
}  // namespace sluice::engine
