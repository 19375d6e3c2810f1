#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/thread_role.h"
#include "engine/mailbox.h"
#include "engine/scheduler.h"
#include "engine/scheduler_limits.h"
#include "engine/stats.h"
#include "engine/step_plan.h"
#include "engine/step_runner.h"
#include "engine/tokenizer/tokenizer.h"

namespace sluice::engine {

// What an engine has been given and has not ended. Work counts as posted until the loop has counted
// it as live, so that at no moment it is in neither.
struct EngineLoad {
  std::atomic<int64_t> posted_sequences{0};  // raised by Submit, lowered by the loop
  std::atomic<int64_t> posted_tokens{0};
  std::atomic<int64_t> live_sequences{0};  // written by the loop
  std::atomic<int64_t> live_tokens{0};
};

// The life of an engine's thread: drain commands, plan, run, commit, send. Owned by Engine; engine
// thread only. Tests call Step themselves, with a clock of their own.
class EngineLoop {
 public:
  // All pointers outlive the loop.
  EngineLoop(const SchedulerLimits& limits, std::unique_ptr<StepRunner> runner,
             std::shared_ptr<const Tokenizer> tokenizer, CommandMailbox* commands,
             ChunkMailbox* outbound, EngineStats* stats, EngineLoad* load, const Clock* clock);

  // Steps until `commands` is closed; then ends what is left with UNAVAILABLE.
  void Run();
  // One turn. With `may_block`, sleeps in the mailbox while there is nothing to do. False when
  // `commands` is closed and everything has ended.
  bool Step(bool may_block);

  // For who calls Step in place of a thread, between two calls. Until when Step(true) would sleep
  // if no command came: nothing when it would not, no time when nothing but a command would wake
  // it.
  struct Sleep {
    std::optional<Time> until;
  };
  std::optional<Sleep> NextSleep();
  // What is wrong with the accounts of pages (Scheduler::Fault).
  std::optional<std::string> Fault();
  // Forgets what is cached for nobody; what the pool then holds.
  struct PoolState {
    int total = 0;
    int free = 0;
  };
  PoolState FlushPrefixCache();

 private:
  std::vector<Command> Drain(bool may_block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(role_);
  // Only a command or the passing of time can give it work.
  bool MaySleep() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(role_) {
    return in_flight_ == nullptr && scheduler_.Idle();
  }
  std::optional<Time> WakeTime() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(role_);
  void Apply(Command&& command, Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(role_);
  void Launch(const StepPlan& plan) ABSL_EXCLUSIVE_LOCKS_REQUIRED(role_);
  void Finish(const StepPlan& plan) ABSL_EXCLUSIVE_LOCKS_REQUIRED(role_);
  // Sends what the scheduler has to say and writes gauges, in this order: who sees an engine idle
  // finds its last chunks in the mailbox.
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(role_);
  void UpdateRate(Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(role_);

  ThreadRole role_;
  CommandMailbox* const commands_;
  ChunkMailbox* const outbound_;
  EngineStats* const stats_;
  EngineLoad* const load_;
  const Clock* const clock_;

  const std::unique_ptr<StepRunner> runner_ ABSL_PT_GUARDED_BY(role_);
  Scheduler scheduler_ ABSL_GUARDED_BY(role_);
  std::array<StepPlan, 2> plans_ ABSL_GUARDED_BY(role_);  // in turn; their arrays are reused
  size_t next_plan_ ABSL_GUARDED_BY(role_) = 0;
  const StepPlan* in_flight_ ABSL_GUARDED_BY(role_) = nullptr;
  struct Launched {
    Time at;
    bool follows = false;  // another step was in flight
  };
  std::array<Launched, 2> launched_ ABSL_GUARDED_BY(role_);  // of each of plans_
  std::optional<Time> last_end_ ABSL_GUARDED_BY(role_);      // of a step, when work followed it
  int64_t drained_sequences_ ABSL_GUARDED_BY(role_) = 0;     // not yet counted as live
  int64_t drained_tokens_ ABSL_GUARDED_BY(role_) = 0;
  Time rate_since_ ABSL_GUARDED_BY(role_);
  uint64_t rate_tokens_ ABSL_GUARDED_BY(role_) = 0;  // generated until rate_since_
};

}  // namespace sluice::engine
