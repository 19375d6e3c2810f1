#include "engine/scheduler.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/kv/page_size.h"

namespace sluice::engine {
namespace {

constexpr int kMaxSequences = 256;  // of a request: what a chunk's key has room for

void Count(std::atomic<uint64_t>& counter, uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}

// The ErrorInfo reason that goes with a status given from outside.
std::string_view ReasonOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kAborted:
      return "SLOW_READER";
    case absl::StatusCode::kUnavailable:
      return "DRAINING";
    default:
      return "";
  }
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits, std::shared_ptr<const Tokenizer> tokenizer,
                     EngineStats* stats)
    : limits_(limits),
      tokenizer_(std::move(tokenizer)),
      stats_(stats),
      pool_(limits.num_pages, {.enabled = limits.prefix_cache}) {
  SLUICE_CHECK(limits.depth == 0 || limits.depth == 1, "a depth of 0 or 1");
  SLUICE_CHECK(limits.max_batch >= 1 && limits.max_step_tokens >= 1 && limits.max_context >= 2,
               "limits that let something run");
  for (int32_t slot = limits.max_batch - 1; slot >= 0; --slot) free_slots_.push_back(SlotId{slot});
  PublishStats();
}

Scheduler::~Scheduler() = default;

WaitingQueue::Share Scheduler::ShareOf(Sequence& sequence) {
  const Request& asked = sequence.request().request();
  return {asked.tenant, asked.tenant_weight, sequence.priority(), sequence.overtaken};
}

std::optional<std::string> Scheduler::Refusal(const Request& request) const {
  const auto n = [](int64_t value) { return std::to_string(value); };
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t max_tokens = request.stopping.max_tokens;
  if (prompt == 0) return "prompt: expected at least 1 token, got 0";
  if (prompt >= limits_.max_context) {
    return "prompt: expected at most " + n(limits_.max_context - 1) + " tokens, got " + n(prompt);
  }
  if (max_tokens < 1) return "max_tokens: expected at least 1, got " + n(max_tokens);
  if (request.sampling.n < 1 || request.sampling.n > kMaxSequences) {
    return "n: expected 1 to " + n(kMaxSequences) + ", got " + n(request.sampling.n);
  }
  const ResumePoint& resume = request.resume;
  if (!resume.token_ids.empty() && request.sampling.n != 1)
    return "resume: expected one sequence, got " + n(request.sampling.n);
  const auto num_resumed = static_cast<int64_t>(resume.token_ids.size());
  if (!resume.end && num_resumed >= max_tokens)
    return "resume: expected less than max_tokens, got " + n(num_resumed) + " tokens";
  if (prompt + num_resumed > limits_.max_context)
    return "resume: the context of " + n(limits_.max_context) + " positions ends before them";
  // The last token's keys and values are never computed.
  const int64_t positions = std::min<int64_t>(prompt + max_tokens, limits_.max_context) - 1;
  const int64_t room = int64_t{pool_.total()} * kPageTokens;
  if (positions > room) {
    return "prompt and max_tokens: the KV pool has room for " + n(room) + " positions, " +
           n(positions) + " are needed";
  }
  return std::nullopt;
}

void Scheduler::Refuse(const Request& request, absl::Status status, std::string_view reason,
                       Time now) {
  TokenChunk chunk;
  chunk.request = request.handle;
  chunk.request_end.emplace();
  chunk.request_end->status = std::move(status);
  chunk.request_end->error_reason = std::string(reason);
  chunk.request_end->usage.prompt_tokens = static_cast<int32_t>(request.prompt.size());
  chunk.request_end->timing.queue_seconds = Seconds(now - request.arrival);
  chunk.request_end->timing.total_seconds = Seconds(now - request.arrival);
  chunks_.push_back(std::move(chunk));
}

void Scheduler::Add(Request&& request, Time now) {
  if (down_) return Refuse(request, Unavailable("the engine is down"), "ENGINE_DOWN", now);
  if (draining_) return Refuse(request, Unavailable("the engine is draining"), "DRAINING", now);
  if (std::optional<std::string> refusal = Refusal(request))
    return Refuse(request, InvalidArgument(*refusal), "", now);

  const RequestHandle handle = request.handle;
  const int n = request.sampling.n;
  const auto [place, is_new] =
      requests_.emplace(handle, std::make_unique<LiveRequest>(std::move(request)));
  SLUICE_CHECK(is_new, "a request handle is never used twice");
  LiveRequest& live = *place->second;
  for (int index = 0; index < n; ++index) {
    const SequenceId id{++last_sequence_};
    auto sequence =
        std::make_unique<Sequence>(id, &live, index, limits_.max_context, &pool_, tokenizer_);
    // What it may take in all: who asks for more waits for more turns.
    waiting_.Add(ShareOf(*sequence), id,
                 sequence->num_prompt() + live.request().stopping.max_tokens, sequence.get());
    waiting_tokens_ += sequence->num_known();
    live_tokens_ += sequence->num_known();
    live.sequences.push_back(sequence.get());
    sequences_.emplace(id, std::move(sequence));
  }
  live.num_live = n;
  live_sequences_ += n;
  Sequence& first = *live.sequences.front();
  std::optional<SequenceEnd> end = live.request().resume.end;
  if (!end && first.num_known() >= limits_.max_context)
    end = SequenceEnd{FinishReason::kContext, {}, std::nullopt};
  if (end) return EndSequence(first, *std::move(end), {}, now);
  NoteDeadline(live);
}

LiveRequest* Scheduler::Find(RequestHandle handle) {
  const auto place = requests_.find(handle);
  return place == requests_.end() ? nullptr : place->second.get();
}

void Scheduler::Cancel(RequestHandle handle, const absl::Status& status, Time issued, Time now) {
  SLUICE_CHECK(!status.ok(), "a cancelled request does not end OK");
  LiveRequest* request = Find(handle);
  if (!request) return;
  bool running = false;
  for (Sequence* sequence : request->sequences) {
    if (!sequence) continue;
    sequence->cancel_issued = issued;
    running = running || sequence->state() == Sequence::State::kRunning;
  }
  Count(running ? stats_->cancelled_running : stats_->cancelled_waiting);
  EndRequest(*request, {status, ReasonOf(status)}, now);
}

void Scheduler::Pause(RequestHandle handle) {
  LiveRequest* request = Find(handle);
  if (!request || request->paused) return;
  request->paused = true;
  paused_sequences_ += request->num_live;
}

void Scheduler::Resume(RequestHandle handle) {
  LiveRequest* request = Find(handle);
  if (!request || !request->paused) return;
  request->paused = false;
  paused_sequences_ -= request->num_live;
}

void Scheduler::EndAll(const absl::Status& status, std::string_view error_reason, Time now) {
  draining_ = true;
  while (!requests_.empty()) EndRequest(*requests_.begin()->second, {status, error_reason}, now);
}

// ---------------------------------------------------------------- time

void Scheduler::NoteDeadline(const LiveRequest& request) {
  const std::optional<Time> deadline = request.NextDeadline();
  if (deadline && (!next_deadline_ || *deadline < *next_deadline_)) next_deadline_ = deadline;
}

void Scheduler::Expire(Time now) {
  if (!next_deadline_ || now < *next_deadline_) return;
  next_deadline_.reset();
  for (auto place = requests_.begin(); place != requests_.end();) {
    LiveRequest& request = *(place++)->second;
    const std::optional<Time> deadline = request.NextDeadline();
    if (deadline && *deadline <= now) {
      ExpireRequest(request, now);
    } else {
      NoteDeadline(request);
    }
  }
}

void Scheduler::ExpireRequest(LiveRequest& request, Time now) {
  const Request& asked = request.request();
  if (asked.deadline && *asked.deadline <= now) {
    return EndRequest(request, {DeadlineExceeded("the call's deadline has passed"), ""}, now);
  }
  if (!request.admitted() && asked.queue_deadline && *asked.queue_deadline <= now) {
    return EndRequest(
        request, {DeadlineExceeded("the request waited in the queue for its queue_timeout"), ""},
        now);
  }
  const std::vector<Sequence*> sequences = request.sequences;
  for (Sequence* sequence : sequences) {
    if (!sequence) continue;
    sequence->output().Finish();
    EndSequence(*sequence, {FinishReason::kDeadline, {}, std::nullopt}, {}, now);
  }
}

// ---------------------------------------------------------------- commit

void Scheduler::Commit(const StepPlan& plan, StepResult&& result, Time now) {
  const bool ok = result.status.ok();
  SLUICE_CHECK(!ok || result.rows.size() == plan.rows.size(), "a result for each row");
  const std::vector<PageId> replaced = std::exchange(replaced_, {});
  for (size_t i = 0; i < plan.rows.size(); ++i)
    CommitRow(plan.rows[i], ok ? &result.rows[i] : nullptr, now);
  // The step just done was the last that could name them.
  for (const PageId page : replaced) pool_.Release(page);
  if (plan.step == last_step_) {
    for (const PageId page : std::exchange(replaced_, {})) pool_.Release(page);
  }
  if (!ok) Fail(result.status, now);
}

void Scheduler::CommitRow(const StepRow& row, RowResult* result, Time now) {
  const auto place = sequences_.find(row.sequence);
  SLUICE_CHECK(place != sequences_.end(), "a sequence outlives its rows");
  Sequence& sequence = *place->second;
  const Sequence::Progress progress = sequence.CommitRow(row);
  if (sequence.state() == Sequence::State::kEnded) {
    if (sequence.rows_in_flight() == 0) {
      zombie_pages_ -= sequence.pages().num_pages();
      Release(sequence, now);
    }
    return;
  }
  if (!result) return;
  LiveRequest& request = sequence.request();
  Count(stats_->prompt_tokens, static_cast<uint64_t>(progress.prompt_tokens));
  if (progress.recomputed > 0) {
    Count(stats_->recomputed_tokens, static_cast<uint64_t>(progress.recomputed));
    request.AddRecomputed(progress.recomputed);
  }
  if (progress.prompt_tokens > 0 && request.request().output.report_progress) {
    TokenChunk chunk = sequence.output().EmptyChunk();
    chunk.prompt_tokens_done = sequence.prompt_done();
    chunk.preemptions = sequence.preemptions;
    Send(request, std::move(chunk));
  }
  if (row.scoring && result->finite) CommitScores(sequence, *row.scoring, *result);
  if (!row.sampling && result->finite) return;
  SLUICE_CHECK(!row.sampling || result->sampled, "a token for each row that asked for one");
  if (result->finite) {
    sequence.PublishPages(replaced_);
    return CommitToken(sequence, std::move(result->token), now);
  }
  Count(stats_->nonfinite_logits);
  const std::string which = row.sampling
                                ? "output token " + std::to_string(sequence.output().num_tokens())
                                : "the prompt";
  EndRequest(
      request,
      {Internal("the logits of " + which + " are not finite" + (limits_.f16_kv ? kF16KvHint : "")),
       "NON_FINITE_LOGITS"},
      now);
}

void Scheduler::CommitScores(Sequence& sequence, const RowScoring& scoring, RowResult& result) {
  SLUICE_CHECK(result.scores.size() == static_cast<size_t>(scoring.num_tokens),
               "a score for each token that was to be scored");
  TokenChunk chunk = sequence.output().EmptyChunk();
  chunk.prompt_position = sequence.num_prompt() - sequence.num_unscored() - scoring.num_tokens;
  chunk.prompt_logprobs = std::move(result.scores);
  Send(sequence.request(), std::move(chunk));
}

void Scheduler::CommitToken(Sequence& sequence, TokenLogprobs&& token, Time now) {
  LiveRequest& request = sequence.request();
  std::optional<SequenceEnd> end = sequence.Accept(std::move(token), now);
  ++live_tokens_;
  Count(stats_->generation_tokens);
  const std::optional<Duration> since_last = sequence.since_last_token();
  if (request.AddToken(now, since_last))
    stats_->time_to_first_token.Observe(Seconds(now - request.request().arrival));
  if (since_last) stats_->inter_token_latency.Observe(Seconds(*since_last));
  if (end) {
    EndSequence(sequence, std::move(*end), {}, now);
  } else if (sequence.output().due()) {
    Send(request, sequence.output().Take());
  }
}

void Scheduler::Fail(const absl::Status& cause, Time now) {
  if (!down_) {
    down_ = true;
    stats_->fault = Message(cause);
    stats_->up.store(false, std::memory_order_release);
  }
  const Outcome after_tokens = {Prefix("the engine failed", Internal(Message(cause))),
                                "ENGINE_FAULT"};
  const Outcome before_tokens = {Unavailable("the engine failed before the first token"),
                                 "ENGINE_DOWN"};
  while (!requests_.empty()) {
    LiveRequest& request = *requests_.begin()->second;
    EndRequest(request, request.tokens_sent ? after_tokens : before_tokens, now);
  }
}

// ---------------------------------------------------------------- ends

void Scheduler::EndRequest(LiveRequest& request, const Outcome& outcome, Time now) {
  // The request is gone with its last sequence.
  const std::vector<Sequence*> sequences = request.sequences;
  for (Sequence* sequence : sequences) {
    if (sequence) EndSequence(*sequence, {FinishReason::kError, {}, std::nullopt}, outcome, now);
  }
}

void Scheduler::EndSequence(Sequence& sequence, SequenceEnd end, const Outcome& outcome, Time now) {
  LiveRequest& request = sequence.request();
  // After an error nothing more is sent: what the client has is what the status speaks of.
  TokenChunk chunk = end.reason == FinishReason::kError ? sequence.output().EmptyChunk()
                                                        : sequence.output().Take();
  chunk.sequence_end = std::move(end);
  --live_sequences_;
  live_tokens_ -= sequence.num_known();
  if (request.paused) --paused_sequences_;
  if (waiting_.Remove(sequence.id())) waiting_tokens_ -= sequence.num_known();
  running_.erase(Rank(sequence));
  request.sequences[static_cast<size_t>(sequence.index())] = nullptr;
  sequence.End(now);
  if (sequence.rows_in_flight() > 0) {
    zombie_pages_ += sequence.pages().num_pages();
  } else {
    Release(sequence, now);
  }
  const bool last = --request.num_live == 0;
  if (last) chunk.request_end = request.End(outcome.status, outcome.error_reason, now);
  Send(request, std::move(chunk));
  if (last) requests_.erase(request.handle());
}

void Scheduler::Release(Sequence& sequence, Time now) {
  if (sequence.slot().value >= 0) free_slots_.push_back(sequence.slot());
  if (sequence.cancel_issued && sequence.pages().num_pages() > 0)
    stats_->cancel_to_free.Observe(Seconds(now - *sequence.cancel_issued));
  sequences_.erase(sequence.id());  // its page table returns the pages
}

void Scheduler::Send(LiveRequest& request, TokenChunk&& chunk) {
  if (!chunk.token_ids.empty()) request.tokens_sent = true;
  chunks_.push_back(std::move(chunk));
}

// ---------------------------------------------------------------- accounts

std::optional<std::string> Scheduler::Fault() const {
  std::vector<std::span<const PageId>> tables = {replaced_};
  for (const auto& [id, sequence] : sequences_) {
    if (std::optional<std::string> fault = sequence->Fault()) return fault;
    tables.push_back(sequence->pages().pages());
  }
  return pool_.Fault(tables);
}

void Scheduler::PublishStats() const {
  const auto set = [](std::atomic<int64_t>& gauge, size_t value) {
    // Released, so that who sees work also sees the time of the step that was stored before.
    gauge.store(static_cast<int64_t>(value), std::memory_order_release);
  };
  set(stats_->requests_running, sequences_.size() - waiting_.size());
  set(stats_->requests_waiting, waiting_.size());
  set(stats_->waiting_prompt_tokens, static_cast<size_t>(waiting_tokens_));
  set(stats_->kv_pages_total, static_cast<size_t>(pool_.total()));
  set(stats_->kv_pages_free, static_cast<size_t>(pool_.num_available()));
  set(stats_->kv_pages_cached, static_cast<size_t>(pool_.num_cached()));
  if (sequences_.empty()) {
    stats_->leaked_pages.store(pool_.total() - pool_.num_available(), std::memory_order_relaxed);
  }
}

}  // namespace sluice::engine
