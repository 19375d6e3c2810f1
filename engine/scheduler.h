#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"

#include "engine/base/clock.h"
#include "engine/base/ids.h"
#include "engine/kv/page_pool.h"
#include "engine/live_request.h"
#include "engine/request.h"
#include "engine/scheduler_limits.h"
#include "engine/sequence.h"
#include "engine/stats.h"
#include "engine/step_plan.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/waiting_queue.h"

namespace sluice::engine {

// Decides what each step computes, and what comes of it. Owns the sequences and the pool's page
// ids; has no thread, no clock and no device. Engine thread only.
//
//   Scheduler scheduler(limits, tokenizer, &stats);
//   scheduler.Add(std::move(request), now);
//   scheduler.Plan(now, plan);                       // takes slots and pages
//   runner.Launch(plan);
//   scheduler.Commit(plan, runner.Wait(plan), now);  // tokens out, ends, pages back
//   outbound.Post(scheduler.TakeChunks());
//
// A step takes the running sequences that want one token first, then chunks of the longer rest
// (prompts), then sequences from the queue, under one budget of tokens; among those that run, the
// ones of higher priority first, then in order of arrival; the queue gives in turns of its tenants
// (WaitingQueue), and each tenant's in that same order. One that later ones of higher priority have
// overtaken WaitingQueue::kMostOvertakings times, out of the queue or by taking its pages, comes
// before all others from then on: so every sequence ends, whatever keeps coming. A sequence leaves
// the queue when all its known tokens have pages and every running sequence could still get one
// more; it then needs pages only as it grows. When the pool is empty, the last running sequence in
// that order goes back to the queue, keeps its tokens and is computed again later; paused ones go
// first. So the first running sequence that is not paused always advances, and the queue moves as
// running ones end: a request that fits the pool alone ends, whatever the pool's size. A sequence
// that was paused and gave up its pages waits in the queue like any other.
//
// Up to one planned step may be in flight while the next is planned (`SchedulerLimits::depth`). A
// sequence that ends with a row in flight becomes a zombie: the row's outcome is dropped, and slot
// and pages go back when its step is committed.
//
// A sequence that leaves the queue takes what the prefix cache has of its tokens; what it computes
// goes there as soon as a row with finite logits has been committed over it. Of the sequences of
// one request the first computes the prompt; the others let those behind them in the queue pass
// until it is there, then share its pages and copy the one that is not full.
//
// Logits are computed of max_batch positions a step at most: prompts that are scored come in slabs,
// which take no more than half of what the running sequences leave.
class Scheduler {
 public:
  // `tokenizer` may be null. `stats` outlives the scheduler.
  Scheduler(const SchedulerLimits& limits, std::shared_ptr<const Tokenizer> tokenizer,
            EngineStats* stats);
  ~Scheduler();

  // Commands. Everything they cause leaves as chunks. A request that is refused gets its end at
  // once: INVALID_ARGUMENT when it could not be served even alone, UNIMPLEMENTED when the device
  // cannot do what it asks for, UNAVAILABLE when the engine is down or draining.
  void Add(Request&& request, Time now);
  // Ends the request with `status`, which is not OK. `issued`: when the command was given. Unknown
  // requests are ignored, here and below.
  void Cancel(RequestHandle handle, const absl::Status& status, Time issued, Time now);
  void Pause(RequestHandle handle);
  void Resume(RequestHandle handle);
  // From now on Add refuses.
  void Drain() { draining_ = true; }
  // Ends every request with `status`, and refuses more.
  void EndAll(const absl::Status& status, std::string_view error_reason, Time now);

  // Ends what is past its time, then fills `plan` (cleared first) with the next step. Empty when
  // nothing can be computed before the next commit or command.
  void Plan(Time now, StepPlan& plan);
  // `plan` has been computed; plans are committed in order. An error in `result` ends every request
  // and takes the scheduler down.
  void Commit(const StepPlan& plan, StepResult&& result, Time now);
  // What is to be sent since the last call.
  std::vector<TokenChunk> TakeChunks() { return std::exchange(chunks_, {}); }

  // True when only a command or the passing of time can give it work.
  bool Idle() const { return live_sequences_ == paused_sequences_; }
  // A device fault has ended it for good.
  bool down() const { return down_; }
  // No later than the next time at which the clock ends something.
  std::optional<Time> NextDeadline() const { return next_deadline_; }

  int64_t live_sequences() const { return live_sequences_; }  // waiting or running
  int64_t live_tokens() const { return live_tokens_; }        // known tokens of those
  // Writes the gauges of EngineStats.
  void PublishStats() const;

  const PagePool& pool() const { return pool_; }
  // Forgets what is cached for nobody.
  void FlushPrefixCache() { pool_.Flush(); }
  // What is wrong with the accounts of pages; nothing when all is well. To be asked between steps:
  // each page is free, referenced or cached; is named by as many tables as it has references; is
  // written by one sequence alone; tables are as long as their sequences; cached pages are found
  // under their tokens.
  std::optional<std::string> Fault() const;

 private:
  // Ascends from who comes first.
  struct Rank {
    int32_t priority = 0;
    SequenceId id;
    explicit Rank(const Sequence& sequence) : priority(sequence.priority()), id(sequence.id()) {}
    friend bool operator<(const Rank& a, const Rank& b) {
      return a.priority != b.priority ? a.priority > b.priority : a.id < b.id;
    }
  };
  struct Outcome {
    absl::Status status;
    std::string_view error_reason;
  };

  static WaitingQueue::Share ShareOf(Sequence& sequence);
  std::optional<std::string> Refusal(const Request& request) const;
  void Refuse(const Request& request, absl::Status status, std::string_view reason, Time now);
  LiveRequest* Find(RequestHandle handle);
  void NoteDeadline(const LiveRequest& request);
  void Expire(Time now);
  void ExpireRequest(LiveRequest& request, Time now);

  void PlanSingles(Time now, StepPlan& plan, int& budget);
  void PlanChunks(StepPlan& plan, int& budget);
  void PlanAdmissions(Time now, StepPlan& plan, int& budget);
  // The sequence of the request from which `sequence` can take the prompt, if there is one;
  // otherwise whether one is about to compute it.
  struct Sibling {
    const Sequence* ready = nullptr;
    bool coming = false;
  };
  Sibling FindSibling(Sequence& sequence) const;
  int ChunkOf(const Sequence& sequence, int budget, const StepPlan& plan) const;
  // Tells the requests that asked for it where they are in the queue, when that has changed.
  void TellPlaces(Time now);
  bool MakeRoom(const Sequence& requester, Time now);
  bool MakeAdmissible(const Sequence& sequence, Time now);
  // Pages that nobody but `sequences` names.
  int NumOwned(std::span<Sequence* const> sequences) const;
  void Admit(Sequence& sequence, Time now, StepPlan& plan);
  void Preempt(Sequence& sequence, Time now);

  void CommitRow(const StepRow& row, RowResult* result, Time now);
  void CommitScores(Sequence& sequence, const RowScoring& scoring, RowResult& result);
  void CommitToken(Sequence& sequence, TokenLogprobs&& token, Time now);
  void Fail(const absl::Status& cause, Time now);
  void EndRequest(LiveRequest& request, const Outcome& outcome, Time now);
  void EndSequence(Sequence& sequence, SequenceEnd end, const Outcome& outcome, Time now);
  void Release(Sequence& sequence, Time now);
  void Send(LiveRequest& request, TokenChunk&& chunk);

  const SchedulerLimits limits_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  EngineStats* const stats_;

  PagePool pool_;  // outlives the sequences below
  std::vector<SlotId> free_slots_;
  std::map<RequestHandle, std::unique_ptr<LiveRequest>> requests_;
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences_;  // zombies included
  WaitingQueue waiting_;
  // Ids ascend with arrival: higher priorities come first, then older ones.
  std::map<Rank, Sequence*> running_;
  int zombie_pages_ = 0;
  std::vector<PageId> replaced_;  // by equal ones, and named by the step in flight still

  uint64_t last_sequence_ = 0;
  uint64_t last_step_ = 0;       // planned, not empty
  uint64_t num_plans_ = 0;       // empty ones included
  bool short_of_pages_ = false;  // in the step being planned
  uint64_t told_changes_ = 0;    // of the queue, when places were told last
  Time next_places_{};           // no earlier are they told again
  bool draining_ = false;
  bool down_ = false;
  std::optional<Time> next_deadline_;
  std::vector<TokenChunk> chunks_;

  int64_t live_sequences_ = 0;
  int64_t paused_sequences_ = 0;
  int64_t live_tokens_ = 0;
  int64_t waiting_tokens_ = 0;
};

}  // namespace sluice::engine
