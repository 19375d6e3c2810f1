#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "engine/base/clock.h"
#include "engine/scheduler.h"
#include "engine/stats.h"
#include "tests/engine/scheduling/chunk_collector.h"
#include "tests/engine/scheduling/fake_tokenizer.h"
#include "tests/testing/fake_runner.h"

namespace sluice::engine {

// A clock that stands still until it is told.
class SimulatedClock final : public Clock {
 public:
  Time Now() const override { return now_; }
  void Advance(Duration duration) { now_ += duration; }

 private:
  Time now_ = Time(std::chrono::hours(1));
};

// The real scheduler with FakeRunner on a simulated clock: a step takes a millisecond. After every
// step the accounts of pages are checked, and that work which can go on does go on.
class SchedulerHarness {
 public:
  struct Options {
    int depth = 0;
    int num_pages = 64;  // page 0 not counted
    int max_batch = 8;
    int max_step_tokens = 64;
    int max_context = 512;
    bool prefix_cache = true;
    std::shared_ptr<const Tokenizer> tokenizer = FakeTokenizer::Make();
    FakeRunner::Options runner{};  // the fields above are filled in
    // Changes a plan on its way to the runner: a planted bug.
    std::function<void(StepPlan&)> tamper{};
  };
  explicit SchedulerHarness(Options options);
  ~SchedulerHarness();

  Time now() const { return clock_.Now(); }
  void Advance(Duration duration) { clock_.Advance(duration); }
  void Submit(Request request);
  void Cancel(uint64_t handle, absl::Status status);
  // One turn of the engine's loop. False when nothing was computed.
  bool Step();
  // Steps until nothing is left; fails the test after `max_steps`.
  void Finish(int max_steps = 100000);
  // Nothing may be wrong: pages, plans, chunks.
  void ExpectSound();

  Scheduler& scheduler() { return scheduler_; }
  FakeRunner& runner() { return runner_; }
  EngineStats& stats() { return stats_; }
  const RequestOutcome& Outcome(uint64_t handle) { return collector_.Outcome(handle); }
  ChunkCollector& collector() { return collector_; }

 private:
  Options options_;
  SimulatedClock clock_;
  EngineStats stats_;
  FakeRunner runner_;
  Scheduler scheduler_;
  ChunkCollector collector_;
  std::array<StepPlan, 2> plans_;
  size_t next_plan_ = 0;
  StepPlan* in_flight_ = nullptr;
};

// A request with `prompt_size` tokens made from `seed`, greedy, `max_tokens`, EOS ignored.
Request MakeRequest(uint64_t handle, int prompt_size, int max_tokens, uint64_t seed = 1);

}  // namespace sluice::engine
