#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"

#include "engine/base/clock.h"
#include "engine/base/ids.h"
#include "engine/kv/page_allocator.h"
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
// A step takes the running sequences that want one token first, oldest first, then chunks of the
// longer rest (prompts), then sequences from the queue, in turns of their tenants (WaitingQueue)
// and each tenant's in order of arrival, under one budget of tokens. A sequence leaves the queue
// when all its known tokens have pages and every running sequence could still get one more; it then
// needs pages only as it grows. When the pool is empty, the newest running sequence goes back to
// the queue, keeps its tokens and is computed again later; paused ones go first. So the oldest
// running sequence that is not paused always advances, and the queue moves as running ones end: a
// request that fits the pool alone ends, whatever the pool's size. A sequence that was paused and
// gave up its pages waits in the queue like any other.
//
// Up to one planned step may be in flight while the next is planned (`SchedulerLimits::depth`). A
// sequence that ends with a row in flight becomes a zombie: the row's outcome is dropped, and slot
// and pages go back when its step is committed.
class Scheduler {
 public:
  // `tokenizer` may be null. `stats` outlives the scheduler.
  Scheduler(const SchedulerLimits& limits, std::shared_ptr<const Tokenizer> tokenizer,
            EngineStats* stats);
  ~Scheduler();

  // Commands. Everything they cause leaves as chunks. A request that is refused gets its end at
  // once: INVALID_ARGUMENT when it could not be served even alone, UNAVAILABLE when the engine is
  // down or draining.
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

  int num_free_pages() const { return allocator_.num_free(); }
  int num_pages() const { return allocator_.total(); }
  // Sum over all page tables; with the free ones it makes up the pool, always.
  int num_held_pages() const;

 private:
  struct Outcome {
    absl::Status status;
    std::string_view error_reason;
  };

  static WaitingQueue::Share ShareOf(const LiveRequest& request);
  std::optional<std::string> Refusal(const Request& request) const;
  void Refuse(const Request& request, absl::Status status, std::string_view reason, Time now);
  LiveRequest* Find(RequestHandle handle);
  void NoteDeadline(const LiveRequest& request);
  void Expire(Time now);
  void ExpireRequest(LiveRequest& request, Time now);

  void PlanSingles(Time now, StepPlan& plan, int& budget);
  void PlanChunks(StepPlan& plan, int& budget);
  void PlanAdmissions(Time now, StepPlan& plan, int& budget);
  bool MakeRoom(const Sequence& requester, Time now);
  bool MakeAdmissible(const Sequence& sequence, Time now);
  void Admit(Sequence& sequence, Time now, StepPlan& plan);
  void Preempt(Sequence& sequence, Time now);

  void CommitRow(const StepRow& row, RowResult* result, Time now);
  void CommitToken(Sequence& sequence, TokenLogprobs&& token, Time now);
  void Fail(const absl::Status& cause, Time now);
  void EndRequest(LiveRequest& request, const Outcome& outcome, Time now);
  void EndSequence(Sequence& sequence, SequenceEnd end, const Outcome& outcome, Time now);
  void Release(Sequence& sequence, Time now);
  void Send(LiveRequest& request, TokenChunk&& chunk);

  const SchedulerLimits limits_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  EngineStats* const stats_;

  PageAllocator allocator_;  // outlives the sequences below
  std::vector<SlotId> free_slots_;
  std::map<RequestHandle, std::unique_ptr<LiveRequest>> requests_;
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences_;  // zombies included
  WaitingQueue waiting_;
  // Ids ascend with arrival: ordered from oldest to newest.
  std::map<SequenceId, Sequence*> running_;
  int zombie_pages_ = 0;

  uint64_t last_sequence_ = 0;
  uint64_t last_step_ = 0;       // planned, not empty
  uint64_t num_plans_ = 0;       // empty ones included
  bool short_of_pages_ = false;  // in the step being planned
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
