#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine_loop.h"
#include "engine/mailbox.h"
#include "engine/stats.h"
#include "server/admission.h"
#include "tests/sim/call.h"
#include "tests/sim/fairness.h"
#include "tests/sim/late_reader.h"
#include "tests/sim/scenario.h"
#include "tests/sim/sim_runner.h"
#include "tests/sim/tenant_ledger.h"

namespace sluice::sim {

// Runs one scenario: the production EngineLoop (mailboxes, Scheduler, page pool, prefix cache,
// waiting queue) and Admission on a simulated clock, device, clients and readers, in one thread.
// After every turn of the loop it looks for what must never be, by the numbers that
// docs/reliability.md ("Simulation") gives the invariants:
//
//   1, 2, 4, 5   CheckPages: all of the pool, so only every seed with `Scenario::thorough` after
//                every turn, others with large pools less often; 4 also in PlanChecker
//   3, 5, 12     SimRunner, of every step that is launched
//   6, 7, 9      OnChunk and what it calls, of every chunk
//   8            SimRunner (first in rank), Fairness (order, turns), Turn, Pass and CheckTurn
//   10           CheckTurn, OnTokens, TenantLedger
//   11           Finish, at the end of a seed
//   12, 13       CheckTurn, Turn
//
// Cannot be checked here, for they live in threads or sockets: that a stream's bytes stay bounded
// in the delivery's EventQueue and in gRPC, that the server's drain and health service tell what
// the engine says, that a command wakes a sleeping loop (the mailbox's condition variable).
class Simulation {
 public:
  explicit Simulation(const Scenario& scenario);
  ~Simulation();

  // To the end, or to the first violation: what that is; nothing when all was well.
  std::optional<std::string> Run();

  struct Count {
    uint64_t inputs = 0;    // events of the scenario
    uint64_t commands = 0;  // to the engine
    uint64_t turns = 0;     // of its loop
    uint64_t rows = 0;      // computed
    uint64_t chunks = 0;    // that came back
    uint64_t preemptions = 0;
    uint64_t reused_tokens = 0;
    uint64_t ends_ok = 0, ends_other = 0, refusals = 0;
    uint64_t cancels = 0;  // of open calls
    uint64_t page_checks = 0;

    uint64_t events() const { return inputs + commands + turns + rows + chunks; }
    void Add(const Count& other);
  };
  const Count& count() const { return count_; }

 private:
  struct Deadline {
    engine::Time at;
    Call* call;
    bool in_queue;
    friend bool operator>(const Deadline& a, const Deadline& b) { return a.at > b.at; }
  };

  void Apply(const Event& event);
  void Submit(const Event& event);
  engine::Request MakeRequest(const Event& event, Call& call);
  void MakePrompt(Random& random, int size, bool whole, engine::Request& request) const;
  // The first tokens of what comes of `call`, as if its stream had broken after them.
  void MakeResumePoint(Random& random, Call& call, engine::Request& request) const;
  // What ends a sequence with its last token, if anything does.
  engine::FinishReason EndOf(const Call& call, int num_tokens, engine::TokenId last) const;
  bool Enter(Call& call, const engine::Request& request);
  void Post(engine::Command&& command);
  void Cancel(Call& call, absl::Status status);
  void StopReading(Call& call);
  void Read(Call& call);

  // Lets time pass until `until`, or for ever: until nothing is open.
  void Pass(std::optional<engine::Time> until);
  void Turn();
  void Deliver();
  void LookLate(bool everywhere);
  void CheckTurn(engine::Time began);
  void CheckAdmissions(engine::Time began);
  void CheckPages();
  void Finish();
  void AbortStalled();
  std::optional<engine::Time> NextDeadline();
  bool Late(const Call& call, const std::optional<engine::Time>& time) const {
    return time && *time <= clock_.Now() && call.open();
  }

  void OnChunk(engine::TokenChunk&& chunk);
  void OnTokens(Call& call, Call::Sequence& sequence, const engine::TokenChunk& chunk);
  void OnScores(Call& call, Call::Sequence& sequence, const engine::TokenChunk& chunk);
  void OnSequenceEnd(Call& call, Call::Sequence& sequence, const engine::TokenChunk& chunk);
  void OnRequestEnd(Call& call, const engine::RequestEnd& end);
  // Why a status is not what the call may end with; empty when it is.
  std::string Unjustified(const Call& call, const engine::RequestEnd& end) const;
  void Wrong(const Call& call, const std::string& what);

  const Scenario& scenario_;
  Violations violations_;
  SimulatedClock clock_;
  std::shared_ptr<const engine::Tokenizer> tokenizer_;
  engine::EngineStats stats_;
  engine::EngineLoad load_;
  engine::CommandMailbox commands_;
  engine::ChunkMailbox chunks_;
  server::Admission admission_;
  TenantLedger ledger_;
  Fairness fairness_;
  std::optional<LateReader> late_reader_;
  SimRunner* runner_ = nullptr;  // owned by the loop
  std::unique_ptr<engine::EngineLoop> loop_;

  std::vector<std::unique_ptr<Call>> calls_;  // by event id; null: no call
  int64_t open_ = 0;
  int64_t live_sequences_ = 0;
  std::vector<Call*> cancelled_;  // since the last turn
  std::vector<Call*> nonfinite_;  // told so in the last turn
  std::vector<Call*> stalled_;
  std::vector<SimRunner::Admission> admissions_;  // of the turn
  std::vector<Call*> ended_late_;                 // of those, and like them
  uint64_t preemptions_ = 0;                      // that are known here
  std::priority_queue<Deadline, std::vector<Deadline>, std::greater<>> deadlines_;
  bool pending_ = false;  // commands were posted since the last turn
  bool draining_ = false;
  bool closed_ = false;
  bool short_of_memory_ = false;
  int policy_ = 0;
  uint64_t turns_to_page_check_ = 0;
  Count count_;
};

}  // namespace sluice::sim
