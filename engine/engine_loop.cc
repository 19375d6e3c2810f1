#include "engine/engine_loop.h"

#include <algorithm>
#include <chrono>
#include <type_traits>
#include <utility>
#include <variant>

#include "engine/base/check.h"
#include "engine/base/failpoint.h"
#include "engine/base/status.h"

namespace sluice::engine {
namespace {

constexpr Duration kRateWindow = std::chrono::seconds(1);
// While all sequences are paused no step is run; health still wants to see the thread alive.
constexpr Duration kPausedWake = std::chrono::seconds(1);

int64_t Nanos(Time time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

}  // namespace

EngineLoop::EngineLoop(const SchedulerLimits& limits, std::unique_ptr<StepRunner> runner,
                       std::shared_ptr<const Tokenizer> tokenizer, CommandMailbox* commands,
                       ChunkMailbox* outbound, EngineStats* stats, EngineLoad* load,
                       const Clock* clock)
    : commands_(commands),
      outbound_(outbound),
      stats_(stats),
      load_(load),
      clock_(clock),
      runner_(std::move(runner)),
      scheduler_(limits, std::move(tokenizer), stats),
      rate_since_(clock->Now()) {
  SLUICE_CHECK(runner_->depth() == limits.depth, "scheduler and runner agree on the depth");
  stats_->last_step_nanos.store(Nanos(rate_since_), std::memory_order_relaxed);
}

void EngineLoop::Run() {
  while (Step(/*may_block=*/true)) {
  }
}

bool EngineLoop::Step(bool may_block) {
  ThreadRoleScope scope(role_);
  // Read before the mailbox is emptied: nothing comes in after it was closed.
  const bool closed = commands_->closed();
  std::vector<Command> commands = Drain(may_block && !closed);
  const Time now = clock_->Now();
  for (Command& command : commands) Apply(std::move(command), now);
  if (closed) scheduler_.EndAll(Unavailable("the server is shutting down"), "DRAINING", now);

  StepPlan& plan = plans_[next_plan_];
  scheduler_.Plan(now, plan);
  Publish();
  const StepPlan* launched = nullptr;
  if (!plan.empty()) {
    Launch(plan);
    launched = &plan;
    next_plan_ ^= 1;
  }
  if (runner_->depth() == 0) std::swap(in_flight_, launched);
  if (in_flight_) Finish(*in_flight_);
  in_flight_ = launched;
  if (plan.empty()) last_end_.reset();
  UpdateRate(clock_->Now());
  Publish();
  return !closed || in_flight_;
}

std::optional<EngineLoop::Sleep> EngineLoop::NextSleep() {
  ThreadRoleScope scope(role_);
  if (!MaySleep()) return std::nullopt;
  return Sleep{WakeTime()};
}

std::optional<std::string> EngineLoop::Fault() {
  ThreadRoleScope scope(role_);
  return scheduler_.Fault();
}

EngineLoop::PoolState EngineLoop::FlushPrefixCache() {
  ThreadRoleScope scope(role_);
  scheduler_.FlushPrefixCache();
  return {scheduler_.pool().total(), scheduler_.pool().num_free()};
}

std::vector<Command> EngineLoop::Drain(bool may_block) {
  std::vector<Command> commands = commands_->Drain(/*wait=*/false);
  if (!may_block || !commands.empty() || !MaySleep()) return commands;
  runner_->Idle();
  commands = commands_->Drain(/*wait=*/true, WakeTime());
  const Time now = clock_->Now();
  // Before the work that came is counted, or the sleep would look like a step that hangs.
  stats_->last_step_nanos.store(Nanos(now), std::memory_order_relaxed);
  if (stats_->generation_tokens.load(std::memory_order_relaxed) == rate_tokens_ &&
      stats_->tokens_per_second.load(std::memory_order_relaxed) == 0) {
    rate_since_ = now;
  }
  return commands;
}

std::optional<Time> EngineLoop::WakeTime() const {
  std::optional<Time> wake = scheduler_.NextDeadline();
  const auto consider = [&](Time time) { wake = wake ? std::min(*wake, time) : time; };
  if (scheduler_.live_sequences() > 0) consider(clock_->Now() + kPausedWake);
  if (stats_->tokens_per_second.load(std::memory_order_relaxed) != 0 ||
      stats_->generation_tokens.load(std::memory_order_relaxed) != rate_tokens_) {
    consider(rate_since_ + kRateWindow);
  }
  return wake;
}

void EngineLoop::Apply(Command&& command, Time now) {
  if (auto* submit = std::get_if<SubmitCommand>(&command)) {
    drained_sequences_ += submit->request.sampling.n;
    drained_tokens_ += submit->request.num_tokens();
    scheduler_.Add(std::move(submit->request), now);
  } else if (auto* cancel = std::get_if<CancelCommand>(&command)) {
    scheduler_.Cancel(cancel->request, cancel->status, cancel->issued, now);
  } else if (auto* pause = std::get_if<PauseCommand>(&command)) {
    scheduler_.Pause(pause->request);
  } else if (auto* resume = std::get_if<ResumeCommand>(&command)) {
    scheduler_.Resume(resume->request);
  } else {
    scheduler_.Drain();
  }
}

void EngineLoop::Launch(const StepPlan& plan) {
  const Time now = clock_->Now();
  // Behind a step in flight only the device can say whether it paused: Finish asks.
  launched_[next_plan_] = {now, in_flight_ != nullptr};
  if (!in_flight_ && last_end_) stats_->step_host_gap.Observe(Seconds(now - *last_end_));
  stats_->step_tokens.Observe(static_cast<double>(plan.tokens.size()));
  stats_->batch_rows.Observe(static_cast<double>(plan.rows.size()));
  runner_->Launch(plan);
}

void EngineLoop::Finish(const StepPlan& plan) {
  StepResult result = runner_->Wait(plan);
  if (Fails(Failpoint::kRunner)) result.status = Internal("a failpoint says so");
  if (Fails(Failpoint::kLogits)) {
    for (RowResult& row : result.rows) row.finite = false;
  }
  const Time now = clock_->Now();
  const Launched& launched = launched_[static_cast<size_t>(&plan - plans_.data())];
  if (launched.follows && result.idle_before) {
    stats_->step_host_gap.Observe(Seconds(*result.idle_before));
  }
  Time begin = launched.at;
  if (last_end_) begin = std::max(begin, *last_end_);  // it waited for the step before
  stats_->step_duration.Observe(Seconds(now - begin));
  stats_->steps.fetch_add(1, std::memory_order_relaxed);
  last_end_ = now;
  scheduler_.Commit(plan, std::move(result), now);
  stats_->last_step_nanos.store(Nanos(now), std::memory_order_relaxed);
}

void EngineLoop::Publish() {
  std::vector<TokenChunk> chunks = scheduler_.TakeChunks();
  if (!chunks.empty()) outbound_->Post(std::move(chunks));
  scheduler_.PublishStats();
  load_->live_tokens.store(scheduler_.live_tokens(), std::memory_order_release);
  load_->live_sequences.store(scheduler_.live_sequences(), std::memory_order_release);
  if (drained_sequences_ == 0) return;
  load_->posted_tokens.fetch_sub(std::exchange(drained_tokens_, 0), std::memory_order_release);
  load_->posted_sequences.fetch_sub(std::exchange(drained_sequences_, 0),
                                    std::memory_order_release);
}

void EngineLoop::UpdateRate(Time now) {
  const Duration elapsed = now - rate_since_;
  if (elapsed < kRateWindow) return;
  const uint64_t tokens = stats_->generation_tokens.load(std::memory_order_relaxed);
  stats_->tokens_per_second.store(static_cast<double>(tokens - rate_tokens_) / Seconds(elapsed),
                                  std::memory_order_relaxed);
  rate_since_ = now;
  rate_tokens_ = tokens;
}

}  // namespace sluice::engine
