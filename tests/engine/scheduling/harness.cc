#include "tests/engine/scheduling/harness.h"

#include <random>
#include <utility>

#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

using std::chrono::milliseconds;

FakeRunner::Options RunnerOptions(const SchedulerHarness::Options& options, SimulatedClock* clock) {
  FakeRunner::Options runner = options.runner;
  runner.depth = options.depth;
  runner.num_pages = options.num_pages + 1;
  runner.max_batch = options.max_batch;
  runner.max_step_tokens = options.max_step_tokens;
  runner.on_wait = [clock] { clock->Advance(milliseconds(1)); };
  return runner;
}

SchedulerLimits Limits(const SchedulerHarness::Options& options) {
  return {.depth = options.depth,
          .max_batch = options.max_batch,
          .max_step_tokens = options.max_step_tokens,
          .max_queue = 1024,
          .num_pages = options.num_pages + 1,
          .max_context = options.max_context,
          .prefix_cache = options.prefix_cache};
}

}  // namespace

SchedulerHarness::SchedulerHarness(Options options)
    : options_(std::move(options)),
      runner_(RunnerOptions(options_, &clock_)),
      scheduler_(Limits(options_), options_.tokenizer, &stats_) {}

SchedulerHarness::~SchedulerHarness() = default;

void SchedulerHarness::Submit(Request request) {
  request.arrival = now();
  scheduler_.Add(std::move(request), now());
}

void SchedulerHarness::Cancel(uint64_t handle, absl::Status status) {
  scheduler_.Cancel(RequestHandle{handle}, status, now(), now());
}

bool SchedulerHarness::Step() {
  StepPlan& plan = plans_[next_plan_];
  scheduler_.Plan(now(), plan);
  // Nothing in flight could make room later: who is left to run must run now.
  EXPECT_TRUE(!plan.empty() || in_flight_ || scheduler_.Idle()) << "work stands still";
  StepPlan* launched = nullptr;
  if (!plan.empty()) {
    if (options_.tamper) options_.tamper(plan);
    runner_.Launch(plan);
    launched = &plan;
    next_plan_ ^= 1;
  }
  if (options_.depth == 0) std::swap(in_flight_, launched);
  const bool computed = in_flight_ != nullptr;
  if (in_flight_) {
    StepResult result = runner_.Wait(*in_flight_);
    scheduler_.Commit(*in_flight_, std::move(result), now());
  }
  in_flight_ = launched;
  collector_.Add(scheduler_.TakeChunks());
  EXPECT_EQ(scheduler_.Fault().value_or(""), "");
  return computed || in_flight_;
}

void SchedulerHarness::Finish(int max_steps) {
  int steps = 0;
  while (scheduler_.live_sequences() > 0 || in_flight_) {
    if (++steps > max_steps) {
      ADD_FAILURE() << "not done after " << max_steps << " steps";
      return;
    }
    Step();
  }
  collector_.Add(scheduler_.TakeChunks());
  EXPECT_EQ(scheduler_.Fault().value_or(""), "");
  EXPECT_EQ(scheduler_.pool().num_available(), scheduler_.pool().total());
  EXPECT_EQ(scheduler_.live_tokens(), 0);
  scheduler_.PublishStats();
  EXPECT_EQ(stats_.leaked_pages.load(), 0);
  EXPECT_EQ(stats_.requests_running.load(), 0);
  EXPECT_EQ(stats_.requests_waiting.load(), 0);
  EXPECT_EQ(stats_.waiting_prompt_tokens.load(), 0);
}

void SchedulerHarness::ExpectSound() {
  for (const std::string& violation : runner_.violations()) ADD_FAILURE() << violation;
  for (const std::string& violation : collector_.violations()) ADD_FAILURE() << violation;
  for (const auto& [handle, request] : collector_.requests())
    EXPECT_TRUE(request.end) << "request " << handle << " has no end";
}

Request MakeRequest(uint64_t handle, int prompt_size, int max_tokens, uint64_t seed) {
  Request request;
  request.handle = RequestHandle{handle};
  request.id = "request-" + std::to_string(handle);
  std::mt19937_64 random(seed);
  for (int i = 0; i < prompt_size; ++i)
    request.prompt.push_back(static_cast<TokenId>(random() % 64));
  request.sampling.temperature = 0;
  request.sampling.seed = seed;
  request.stopping.max_tokens = max_tokens;
  request.stopping.ignore_eos = true;
  return request;
}

}  // namespace sluice::engine
