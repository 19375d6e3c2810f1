#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/kv/page_size.h"
#include "engine/step_runner.h"
#include "tests/sim/call.h"
#include "tests/sim/scenario.h"
#include "tests/testing/plan_checker.h"

namespace sluice::sim {

// A clock that moves only when it is told.
class SimulatedClock final : public engine::Clock {
 public:
  engine::Time Now() const override { return now_; }
  void Advance(engine::Duration duration) { now_ += duration; }
  void AdvanceTo(engine::Time time) { now_ = std::max(now_, time); }

 private:
  engine::Time now_ = engine::Time(std::chrono::hours(1));
};

// Collects what is wrong; the first is what counts.
class Violations {
 public:
  void Add(std::string what) {
    if (first_.empty()) first_ = std::move(what);
  }
  bool any() const { return !first_.empty(); }
  const std::string& first() const { return first_; }

 private:
  std::string first_;
};

// The device: FakeRunner's idea with hashes in place of tokens, so that a row costs what it
// computes and not what it reads. Knows which call a sequence is of and notices work that should
// not be done any more.
class SimRunner final : public engine::StepRunner {
 public:
  // All outlive it. `find`: the call with a handle; null when there is none.
  SimRunner(const Scenario& scenario, SimulatedClock* clock, Violations* violations,
            std::function<Call*(uint64_t handle)> find);

  int depth() const override { return scenario_.limits.depth; }
  void Launch(const engine::StepPlan& plan) override;
  engine::StepResult Wait(const engine::StepPlan& plan) override;

  // `call`, which was paused, goes on.
  void NoteResume(const Call& call);
  // The next step takes so long.
  void Hang(engine::Duration duration) { hang_ = duration; }

  struct Admission {
    Call* call;
    int index;
    bool first;  // not again after preemption
  };
  // Sequences that got a place since the last call.
  std::vector<Admission> TakeAdmissions() { return std::exchange(admissions_, {}); }
  // Calls of one sequence that had a place and wait for one again, seen since the last call while
  // others got one.
  std::vector<Call*> TakePreempted() { return std::exchange(preempted_, {}); }
  // Calls that were told of logits that are not finite, since the last call.
  std::vector<Call*> TakeNonfinite() { return std::exchange(nonfinite_, {}); }

  uint64_t steps() const { return steps_; }
  uint64_t rows() const { return rows_; }
  uint64_t steps_without_progress() const { return steps_without_progress_; }
  bool in_flight() const { return !launched_.empty(); }
  bool failed() const { return failed_; }

 private:
  struct Page {
    uint64_t before = 0;  // the prefix that the page follows
    std::array<uint64_t, engine::kPageTokens> prefixes{};
    int size = 0;  // positions that hold something
  };
  // The last step launched that names a page, and for which sequence; 0: for several.
  struct Named {
    uint64_t step = 0;
    uint64_t sequence = 0;
  };
  struct Sequence {
    Call* call = nullptr;
    int index = 0;
    int next_position = 0;
    int high_water = 0;
    bool poisoned = false;    // by logits that were not finite
    uint64_t planned_in = 0;  // the last step that has a row of it
    int planned_end = 0;      // of that row
    uint64_t num_pauses = 0;  // of the call at that time: it may have lost its place in later ones
  };
  struct Slot {
    Call* call = nullptr;
    int index = 0;
    uint64_t prefix = 0;  // of what the sampler knows
    int num_output = 0;
    int min_tokens = 0;
    std::vector<engine::TokenId> banned;
  };

  static std::string NameOf(const Sequence& sequence);
  static bool HasEnded(const Sequence& sequence);
  void Violation(const engine::StepPlan& plan, const std::string& what);
  Page& PageOf(std::span<const engine::PageId> table, int position);
  void NoteAdmissions(const engine::StepPlan& plan);
  // A page that a row writes must not be named by another's row of the step in flight: that one may
  // still read or write it.
  void CheckPagesInFlight(const engine::StepPlan& plan);
  // The first in rank of the sequences that run must get on, however short of pages it is.
  void CheckFirst(const engine::StepPlan& plan);
  // While somebody gets a place nobody who has one is left out: who has no row waits for a place.
  void NotePreempted(const engine::StepPlan& plan);
  void SetSlots(const engine::StepPlan& plan);
  void CheckPrefix(const engine::StepPlan& plan, const engine::StepRow& row,
                   const Sequence& sequence);
  engine::RowResult RunRow(const engine::StepPlan& plan, const engine::StepRow& row);
  void Sample(const engine::StepPlan& plan, const engine::StepRow& row, const Sequence& sequence,
              uint64_t prefix, engine::RowResult& result);

  const Scenario& scenario_;
  SimulatedClock* const clock_;
  Violations* const violations_;
  const std::function<Call*(uint64_t)> find_;
  Random random_;  // of the time that steps take

  engine::PlanChecker checker_;
  std::vector<std::string> contradictions_;
  std::vector<Page> pages_;   // by id
  std::vector<Named> named_;  // by page id
  std::vector<Slot> slots_;
  std::vector<Sequence> sequences_;           // by id
  std::set<std::pair<int, uint64_t>> ranks_;  // (-priority, id) of those that ever got a place
  std::optional<uint64_t> first_;  // the id of the first of them that has not been paused since
  bool first_runs_ = false;        // it had a row since it was first
  // Others that may come before it: overtaken so often that they may be promoted.
  std::set<uint64_t> may_be_promoted_;
  int plans_without_first_ = 0;
  std::vector<engine::TokenId> previous_;  // sampled by the last step, by row; -1: none
  std::vector<engine::TokenId> sampled_;
  std::deque<const engine::StepPlan*> launched_;
  std::vector<Admission> admissions_;
  std::vector<Call*> preempted_;
  std::vector<Call*> nonfinite_;
  engine::Duration hang_{};
  uint64_t last_launched_ = 0;
  uint64_t steps_ = 0;
  uint64_t rows_ = 0;
  uint64_t steps_without_progress_ = 0;
  bool progress_ = false;
  bool failed_ = false;
};

}  // namespace sluice::sim
