#include "tests/sim/simulation.h"

#include <algorithm>
#include <chrono>

#include "engine/base/status.h"
#include "engine/resume.h"
#include "server/tenant_policy.h"
#include "tests/engine/scheduling/fake_tokenizer.h"

namespace sluice::sim {
namespace {

using engine::FinishReason;
using engine::Time;
using engine::TokenChunk;
using engine::TokenId;

// Turns of the loop without a position computed for the first time, beyond those that computing a
// whole context again takes.
constexpr uint64_t kPatience = 2000;

std::string NameOf(int tenant) { return "t" + std::to_string(tenant); }

bool Contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

void Simulation::Count::Add(const Count& other) {
  inputs += other.inputs;
  commands += other.commands;
  turns += other.turns;
  rows += other.rows;
  chunks += other.chunks;
  preemptions += other.preemptions;
  reused_tokens += other.reused_tokens;
  ends_ok += other.ends_ok;
  ends_other += other.ends_other;
  refusals += other.refusals;
  cancels += other.cancels;
  page_checks += other.page_checks;
}

Simulation::Simulation(const Scenario& scenario)
    : scenario_(scenario),
      tokenizer_(engine::FakeTokenizer::Make()),
      commands_(static_cast<size_t>(scenario.limits.max_queue)),
      chunks_(scenario.mailbox_lanes),
      admission_(scenario.bounds),
      ledger_(scenario.bounds, scenario.num_tenants),
      fairness_(scenario.num_tenants) {
  const auto find = [this](uint64_t handle) -> Call* {
    return handle >= 1 && handle <= calls_.size() ? calls_[handle - 1].get() : nullptr;
  };
  if (scenario.features.late_reader)
    late_reader_.emplace(Mix(scenario.seed, 4), scenario.mailbox_lanes, find);
  auto runner = std::make_unique<SimRunner>(scenario, &clock_, &violations_, find);
  runner_ = runner.get();
  loop_ = std::make_unique<engine::EngineLoop>(scenario.limits, std::move(runner), tokenizer_,
                                               &commands_, &chunks_, &stats_, &load_, &clock_);
  stats_.up.store(true);
  if (!scenario.events.empty()) calls_.resize(scenario.events.back().id + 1);
  Apply({.kind = Event::Kind::kSetPolicy});
}

Simulation::~Simulation() = default;

void Simulation::Wrong(const Call& call, const std::string& what) {
  violations_.Add("call " + std::to_string(call.handle.value) + ": " + what);
}

std::optional<std::string> Simulation::Run() {
  for (const Event& event : scenario_.events) {
    if (violations_.any() || closed_) break;
    Pass(clock_.Now() + event.gap);
    if (violations_.any()) break;
    ++count_.inputs;
    Apply(event);
  }
  if (!violations_.any()) Finish();
  count_.preemptions = stats_.preemptions.load();
  count_.reused_tokens = stats_.prefix_cache_hits.load();
  count_.rows = runner_->rows();
  if (violations_.any()) return violations_.first();
  return std::nullopt;
}

// ---------------------------------------------------------------- what happens

void Simulation::Apply(const Event& event) {
  Random random(event.random);
  Call* target = event.target < calls_.size() ? calls_[event.target].get() : nullptr;
  switch (event.kind) {
    case Event::Kind::kSubmit:
      return Submit(event);
    case Event::Kind::kCancel:
      if (target && target->submitted) Cancel(*target, engine::Cancelled("gone"));
      return;
    case Event::Kind::kStopRead:
      if (target && target->open()) StopReading(*target);
      return;
    case Event::Kind::kRead:
      if (target && target->open()) Read(*target);
      return;
    case Event::Kind::kReadAll:
      for (const auto& call : calls_) {
        if (call && call->open()) Read(*call);
      }
      return;
    case Event::Kind::kJump:
      clock_.Advance(std::chrono::milliseconds(random.Zipf(10'000'000)));
      pending_ = true;  // the machine slept: whatever was due is late
      return;
    case Event::Kind::kHang:
      return runner_->Hang(std::chrono::milliseconds(random.Zipf(10'000'000)));
    case Event::Kind::kFlush:
      loop_->FlushPrefixCache();
      return;
    case Event::Kind::kMemory:
      short_of_memory_ = !short_of_memory_;
      admission_.SetShortOfMemory(short_of_memory_);
      return;
    case Event::Kind::kSetPolicy: {
      auto policy = server::TenantPolicy::Parse(scenario_.policies[policy_]);
      policy_ ^= 1;
      if (!policy.ok()) return violations_.Add(std::string(policy.status().message()));
      ledger_.SetPolicy(*policy);
      admission_.SetPolicy(*policy);
      for (int tenant = 0; tenant < scenario_.num_tenants; ++tenant)
        fairness_.SetWeight(tenant, ledger_.Limits(tenant).weight);
      return;
    }
    case Event::Kind::kDrain:
      draining_ = true;
      return Post(engine::DrainCommand{});
    case Event::Kind::kShutdown:
      closed_ = true;
      pending_ = true;
      return commands_.Close();
  }
}

void Simulation::Post(engine::Command&& command) {
  ++count_.commands;
  if (commands_.Post(std::move(command)).ok()) pending_ = true;
}

void Simulation::MakePrompt(Random& random, int size, bool whole, engine::Request& request) const {
  request.prompt.resize(static_cast<size_t>(size));
  // Conversations begin alike; some are whole repetitions.
  const uint64_t common = scenario_.features.shared_prompts ? 1 + random.Next() % 3 : 0;
  const int shared = common == 0 ? 0 : whole ? size : random.Zipf(size);
  Random own(common == 0 ? random.Next() : Mix(scenario_.seed, common));
  for (int i = 0; i < size; ++i) {
    if (i == shared && common != 0) own = Random(random.Next());
    request.prompt[static_cast<size_t>(i)] = static_cast<TokenId>(own.Below(kVocabulary));
  }
}

engine::Request Simulation::MakeRequest(const Event& event, Call& call) {
  Random random(Mix(event.random, 3));
  const Features& has = scenario_.features;
  const engine::SchedulerLimits& limits = scenario_.limits;
  const int pool = (limits.num_pages - 1) * engine::kPageTokens + 1;
  const int room = std::min(pool, limits.max_context);
  int prompt = 1, most = 1;
  switch (scenario_.lengths) {
    case Lengths::kZipf:
      prompt = random.Zipf(room - 1);
      most = random.Zipf(room - prompt);
      break;
    case Lengths::kMaximal:
      prompt = random.OneIn(2) ? room - 1 : random.Between(1, room - 1);
      most = room - prompt;
      break;
    case Lengths::kPool:
      prompt = random.Between(1, room - 1);
      most = random.OneIn(2) ? room - prompt : random.Between(1, room - prompt);
      break;
    case Lengths::kTiny:
      prompt = random.Between(1, std::min(room - 1, 40));
      most = random.Between(1, std::min(room - prompt, 24));
      break;
    case Lengths::kGrowing:
      prompt = random.Between(1, std::min(room - 1, 40));
      most = random.Between(1, std::min(room - prompt, 256));
      break;
  }
  if (scenario_.lengths < Lengths::kTiny && !random.OneIn(6)) most = std::min(most, 60);
  // Beyond the context where the pool holds all of it.
  if (room == limits.max_context && pool > limits.max_context && random.OneIn(6)) most += room;

  engine::Request request;
  request.handle = engine::RequestHandle{uint64_t{event.id} + 1};
  request.id = "r";
  call.handle = request.handle;
  call.tenant = static_cast<int>(random.Below(scenario_.num_tenants));
  request.tenant = NameOf(call.tenant);
  request.tenant_weight = ledger_.Limits(call.tenant).weight;
  MakePrompt(random, prompt, random.OneIn(3), request);
  request.sampling.seed = request.handle.value;
  if (has.siblings && random.OneIn(2)) request.sampling.n = random.Between(2, 6);
  if (has.impossible && random.OneIn(6)) {
    call.impossible = true;
    switch (random.Below(4)) {
      case 0:
        request.prompt.resize(static_cast<size_t>(limits.max_context));
        break;
      case 1:
        request.prompt.clear();
        break;
      case 2:
        most = 0;
        break;
      default:
        if (pool < limits.max_context) {
          most = pool - prompt + 1;
        } else {
          request.sampling.n = 257;
        }
    }
  }
  request.stopping.max_tokens = most;
  request.stopping.min_tokens = random.OneIn(3) ? random.Between(0, std::min(most, 12)) : 0;
  request.stopping.ignore_eos = random.OneIn(2);
  if (random.OneIn(4)) request.stopping.stop_token_ids = {static_cast<TokenId>(random.Below(64))};
  request.output.return_text = has.text;
  request.output.return_token_ids = true;
  if (has.intervals) request.output.stream_interval = random.Between(1, 9);
  if (random.OneIn(8)) request.output.logprobs = random.Between(0, 2);
  if (has.scores && random.OneIn(3)) request.output.prompt_logprobs = 0;
  request.output.report_progress = has.progress && random.OneIn(2);
  if (has.priorities) request.priority = random.Between(-1, 2);
  request.cache.bypass = has.bypasses && random.OneIn(3);
  const std::string salt = has.salts ? std::to_string(random.Below(3)) : "";
  request.cache.domain = engine::CacheDomain(request.tenant, salt);
  const Time now = clock_.Now();
  const auto soon = [&] { return now + scenario_.step_time * random.Zipf(400); };
  if (has.deadlines && random.OneIn(3)) request.deadline = soon();
  if (has.queue_timeouts && random.OneIn(3)) request.queue_deadline = soon();
  if (has.max_times && random.OneIn(3)) request.max_time = soon();
  request.arrival = now;

  call.n = request.sampling.n;
  call.num_prompt = static_cast<int>(request.prompt.size());
  call.cost = call.num_prompt + most;
  call.stopping = request.stopping;
  call.banned = request.stopping.stop_token_ids;
  if (!request.stopping.ignore_eos) call.banned.push_back(engine::FakeTokenizer::kEos);
  call.output = request.output;
  call.priority = request.priority;
  call.deadline = request.deadline;
  call.queue_deadline = request.queue_deadline;
  call.max_time = request.max_time;
  // Who bypasses the cache shares with nobody but its own sequences.
  call.base = request.cache.bypass ? Mix(scenario_.seed, call.handle.value + 100)
                                   : Mix(Mix(scenario_.seed, static_cast<uint64_t>(call.tenant)),
                                         salt.empty() ? 99 : static_cast<uint64_t>(salt[0]));
  call.prompt_prefix = call.base;
  for (const TokenId token : request.prompt) call.prompt_prefix = Chain(call.prompt_prefix, token);
  if (request.output.prompt_logprobs >= 0) call.scored_prompt = request.prompt;
  if (has.resumes && call.n == 1 && !call.impossible && call.scored_prompt.empty() &&
      random.OneIn(2)) {
    MakeResumePoint(random, call, request);
  }
  return request;
}

void Simulation::MakeResumePoint(Random& random, Call& call, engine::Request& request) const {
  uint64_t prefix = call.prompt_prefix;
  for (int left = random.Zipf(call.stopping.max_tokens); left > 0; --left) {
    const int num_output = static_cast<int>(call.resumed.size());
    const int position = call.num_prompt + num_output;
    if (scenario_.features.nonfinite && IsNonfinite(call.handle.value, 0, position)) break;
    const TokenId token = DrawToken(prefix, {.seed = call.handle.value,
                                             .position = position,
                                             .num_output = num_output,
                                             .min_tokens = call.stopping.min_tokens,
                                             .banned = call.banned});
    if (EndOf(call, num_output + 1, token) != FinishReason::kNone) break;
    prefix = Chain(prefix, token);
    call.resumed.push_back(token);
  }
  request.resume.token_ids = call.resumed;
  engine::ReplayOutput(tokenizer_, request);
}

bool Simulation::Enter(Call& call, const engine::Request& request) {
  const Time now = clock_.Now();
  const int64_t bytes = static_cast<int64_t>(request.prompt.size()) * 4 + 32;
  const auto entering = ledger_.Entering(call.tenant, bytes, short_of_memory_, now);
  server::RpcError error;
  call.ticket = admission_.Enter(request.tenant, bytes, now, &error);
  const auto judge = [&](const std::optional<std::string>& due, const std::string& came) {
    if (due && *due != came)
      Wrong(call, "admission says \"" + came + "\" where \"" + *due + "\" is due");
    const auto retry = error.retry_after;
    if (retry && (*retry < std::chrono::milliseconds(20) || *retry > std::chrono::seconds(30)))
      Wrong(call, "a retry is asked for after " + std::to_string(retry->count()) + " ms");
    return came.empty();
  };
  if (!judge(entering, call.ticket ? "" : error.reason)) return false;
  ledger_.Enter(call, bytes);

  server::Admission::Demand demand;
  demand.prompt_tokens = call.num_prompt;
  demand.positions = request.max_positions();
  demand.pool_positions = int64_t{scenario_.limits.num_pages - 1} * engine::kPageTokens;
  demand.sequences = request.sampling.n;
  demand.priority = request.priority;
  demand.backlog = stats_.requests_waiting.load();
  demand.deadline = call.deadline;
  const auto reserving = ledger_.Reserving(call, demand, now);
  const auto refusal = call.ticket->Reserve(demand, now);
  const bool unmeetable = refusal && refusal->reason == "DEADLINE_UNMEETABLE";
  if (unmeetable && (!call.deadline || demand.backlog == 0))
    Wrong(call, "a deadline that is not there cannot be met");
  if (refusal) error = *refusal;
  if (judge(unmeetable ? std::nullopt : reserving, refusal ? refusal->reason : "")) {
    ledger_.Reserve(call, demand, now);
    return true;
  }
  ledger_.Leave(call);
  call.ticket.reset();
  return false;
}

void Simulation::Submit(const Event& event) {
  calls_[event.id] = std::make_unique<Call>();
  Call& call = *calls_[event.id];
  engine::Request request = MakeRequest(event, call);
  const auto give_up = [&] {
    ++count_.refusals;
    if (!call.ticket) return;
    ledger_.Leave(call);
    call.ticket.reset();
  };
  if (!Enter(call, request)) return give_up();
  // As Engine::Submit does. A race lets some calls through to an engine that is down or drains.
  const bool raced = event.random % 4 == 0;
  if (!raced && (!stats_.up.load() || draining_)) return give_up();
  const int64_t n = call.n;
  const int64_t posted = load_.posted_sequences.load();
  if (posted + stats_.requests_waiting.load() + n > scenario_.limits.max_queue) return give_up();
  load_.posted_sequences.fetch_add(n);
  load_.posted_tokens.fetch_add(request.num_tokens());
  call.submitted = true;
  call.ticket->Accepted();
  call.after_drain = draining_;
  call.sequences.resize(static_cast<size_t>(n));
  call.num_live = call.n;
  for (Call::Sequence& sequence : call.sequences) {
    sequence.prefix = call.prompt_prefix;
    sequence.scored_prefix = call.base;
    if (call.output.return_text)
      sequence.detokenizer.emplace(tokenizer_, call.output.skip_special_tokens, true);
    for (const TokenId token : call.resumed) {
      sequence.prefix = Chain(sequence.prefix, token);
      ++sequence.num_tokens;
      std::string said;
      if (sequence.detokenizer) sequence.detokenizer->Append(token, said);
    }
  }
  ++open_;
  live_sequences_ += n;
  fairness_.Arrive(&call);
  if (call.deadline) deadlines_.push({*call.deadline, &call, false});
  if (call.max_time) deadlines_.push({*call.max_time, &call, false});
  if (call.queue_deadline) deadlines_.push({*call.queue_deadline, &call, true});
  Post(engine::SubmitCommand{std::move(request)});
}

void Simulation::Cancel(Call& call, absl::Status status) {
  if (call.open()) {
    ++count_.cancels;
    (absl::IsAborted(status) ? call.aborted : call.cancelled) = true;
    cancelled_.push_back(&call);
  }
  Post(engine::CancelCommand{call.handle, std::move(status), clock_.Now()});
}

void Simulation::StopReading(Call& call) { call.reads = false; }

void Simulation::Read(Call& call) {
  call.reads = true;
  call.unread = 0;
  if (!call.paused) return;
  call.paused = false;
  std::erase(stalled_, &call);
  runner_->NoteResume(call);
  Post(engine::ResumeCommand{call.handle});
}

// ---------------------------------------------------------------- time

std::optional<Time> Simulation::NextDeadline() {
  while (!deadlines_.empty()) {
    const Deadline& next = deadlines_.top();
    if (next.call->open() && !(next.in_queue && next.call->admitted)) return next.at;
    deadlines_.pop();
  }
  return std::nullopt;
}

void Simulation::AbortStalled() {
  for (size_t i = 0; i < stalled_.size();) {
    Call& call = *stalled_[i];
    if (clock_.Now() - call.paused_at < scenario_.stall_timeout) {
      ++i;
      continue;
    }
    stalled_[i] = stalled_.back();
    stalled_.pop_back();
    if (call.open()) Cancel(call, absl::AbortedError("the reader has stalled"));
  }
}

void Simulation::Pass(std::optional<Time> until) {
  while (!violations_.any() && (until ? clock_.Now() < *until || pending_ : open_ > 0)) {
    if (until && closed_) return;
    AbortStalled();
    const auto sleep = pending_ ? std::nullopt : loop_->NextSleep();
    if (!sleep) {
      Turn();
      continue;
    }
    std::optional<Time> wake = sleep->until;
    const auto due = NextDeadline();
    if (due && (!wake || *wake > *due))
      return violations_.Add("the engine would sleep beyond a deadline");
    const auto consider = [&](Time time) { wake = wake ? std::min(*wake, time) : time; };
    for (const Call* call : stalled_) consider(call->paused_at + scenario_.stall_timeout);
    if (!wake && !until) return violations_.Add("everything sleeps while calls are open");
    if (until) consider(*until);
    clock_.AdvanceTo(*wake);
    // What wakes it by itself; an event that came in the meantime does so with its command.
    if (sleep->until && *sleep->until <= clock_.Now()) Turn();
  }
}

void Simulation::Turn() {
  const Time began = clock_.Now();
  const uint64_t steps = runner_->steps();
  pending_ = false;
  ++count_.turns;
  const bool goes_on = loop_->Step(/*may_block=*/false);
  if (violations_.any()) return;
  const bool computed = runner_->steps() > steps;
  admissions_ = runner_->TakeAdmissions();
  Deliver();
  if (violations_.any()) return;
  if (computed && stats_.last_step_nanos.load() != clock_.Now().time_since_epoch().count())
    return violations_.Add("health does not see the step that was just done");
  if (!computed && !runner_->in_flight() && !loop_->NextSleep() && goes_on)
    return violations_.Add("work stands still");
  CheckTurn(began);
}

void Simulation::Deliver() {
  nonfinite_ = runner_->TakeNonfinite();
  for (Call* call : nonfinite_) call->nonfinite = true;
  for (int lane = 0; lane < chunks_.num_lanes(); ++lane) {
    std::vector<TokenChunk> chunks = chunks_.TakeNow(lane);
    if (late_reader_ && !chunks.empty()) late_reader_->Post(chunks);
    for (TokenChunk& chunk : chunks) {
      if (violations_.any()) return;
      OnChunk(std::move(chunk));
    }
  }
  LookLate(/*everywhere=*/false);
}

void Simulation::LookLate(bool everywhere) {
  if (!late_reader_ || violations_.any()) return;
  if (std::string wrong = late_reader_->Look(everywhere); !wrong.empty())
    violations_.Add(std::move(wrong));
}

// ---------------------------------------------------------------- what comes back

void Simulation::OnChunk(TokenChunk&& chunk) {
  ++count_.chunks;
  const uint64_t handle = chunk.request.value;
  if (handle < 1 || handle > calls_.size() || !calls_[handle - 1] || !calls_[handle - 1]->submitted)
    return violations_.Add("a chunk for no call");
  Call& call = *calls_[handle - 1];
  if (call.ended) return Wrong(call, "a chunk after its end");
  if (chunk.admitted) {
    if (call.admitted) return Wrong(call, "admitted twice");
    if (call.impossible) return Wrong(call, "admitted, which could not be served even alone");
    call.admitted = true;
  }
  if (call.admitted && chunk.queue_position != 0) return Wrong(call, "admitted, and in the queue");
  const bool refused = chunk.request_end && !chunk.sequence_end && call.num_live == call.n;
  if (!refused) {
    if (chunk.index < 0 || chunk.index >= call.n) return Wrong(call, "a sequence it does not have");
    Call::Sequence& sequence = call.sequences[static_cast<size_t>(chunk.index)];
    if (sequence.ended) return Wrong(call, "a chunk after its sequence's end");
    OnScores(call, sequence, chunk);
    OnTokens(call, sequence, chunk);
    if (chunk.sequence_end) OnSequenceEnd(call, sequence, chunk);
  } else {
    call.num_live = 0;
    live_sequences_ -= call.n;
  }
  if (chunk.request_end) OnRequestEnd(call, *chunk.request_end);
}

void Simulation::OnScores(Call& call, Call::Sequence& sequence, const TokenChunk& chunk) {
  if (chunk.prompt_logprobs.empty()) return;
  if (call.scored_prompt.empty() || chunk.index != 0 || sequence.num_tokens > 0)
    return Wrong(call, "scores that it did not ask for, or too late");
  if (chunk.prompt_position != sequence.num_scored + 1)
    return Wrong(call, "scores at the wrong position");
  for (const engine::TokenLogprobs& score : chunk.prompt_logprobs) {
    const auto next = static_cast<size_t>(++sequence.num_scored);
    if (next >= call.scored_prompt.size()) return Wrong(call, "more scores than tokens");
    sequence.scored_prefix = Chain(sequence.scored_prefix, call.scored_prompt[next - 1]);
    const TokenId token = call.scored_prompt[next];
    if (score.token != token || score.logprob != Score(sequence.scored_prefix, token))
      return Wrong(call, "a wrong score");
  }
}

FinishReason Simulation::EndOf(const Call& call, int num_tokens, TokenId last) const {
  const auto& stopping = call.stopping;
  const bool may_end = num_tokens >= stopping.min_tokens;
  if (may_end && !stopping.ignore_eos && last == engine::FakeTokenizer::kEos)
    return FinishReason::kEos;
  if (may_end && Contains(stopping.stop_token_ids, last)) return FinishReason::kStop;
  if (num_tokens >= stopping.max_tokens) return FinishReason::kLength;
  if (call.num_prompt + num_tokens >= scenario_.limits.max_context) return FinishReason::kContext;
  return FinishReason::kNone;
}

void Simulation::OnTokens(Call& call, Call::Sequence& sequence, const TokenChunk& chunk) {
  sequence.text += chunk.text;
  if (chunk.token_ids.empty()) return;
  if (!call.admitted) return Wrong(call, "tokens before it was admitted");
  if (chunk.position != sequence.num_tokens) return Wrong(call, "tokens at the wrong position");
  if (call.output.logprobs >= 0 && chunk.logprobs.size() != chunk.token_ids.size())
    return Wrong(call, "not one logprob a token");
  if (!call.scored_prompt.empty() && chunk.index == 0 && sequence.num_scored + 1 != call.num_prompt)
    return Wrong(call, "tokens before the scores of the prompt");
  const auto& stopping = call.stopping;
  for (size_t i = 0; i < chunk.token_ids.size(); ++i) {
    const TokenId token = chunk.token_ids[i];
    if (sequence.due != FinishReason::kNone) return Wrong(call, "a token after the last");
    const int position = call.num_prompt + sequence.num_tokens;
    if (scenario_.features.nonfinite && IsNonfinite(call.handle.value, chunk.index, position))
      return Wrong(call, "a token from logits that are not finite");
    const TokenId expected = DrawToken(sequence.prefix, {.seed = call.handle.value,
                                                         .index = chunk.index,
                                                         .position = position,
                                                         .num_output = sequence.num_tokens,
                                                         .min_tokens = stopping.min_tokens,
                                                         .banned = call.banned});
    if (token != expected)
      return Wrong(call, "token " + std::to_string(sequence.num_tokens) +
                             " is not the one that it has when computed alone");
    if (call.output.logprobs >= 0 && chunk.logprobs[i].logprob != Score(sequence.prefix, token))
      return Wrong(call, "a wrong logprob");
    sequence.prefix = Chain(sequence.prefix, token);
    ++sequence.num_tokens;
    sequence.due = EndOf(call, sequence.num_tokens, token);
    const bool says = sequence.due != FinishReason::kEos && sequence.due != FinishReason::kStop;
    if (sequence.detokenizer && says) sequence.detokenizer->Append(token, sequence.expected_text);
  }
  const auto size = static_cast<int64_t>(chunk.token_ids.size());
  if (!chunk.sequence_end && size < call.output.stream_interval)
    return Wrong(call, "fewer tokens in a chunk than asked for");
  if (!call.ticket) return Wrong(call, "tokens without a ticket");
  call.ticket->Generated(size, clock_.Now());
  ledger_.Generated(call, size, clock_.Now());
  if (call.reads) return;
  call.unread += size;
  // A paused call may have steps in flight, and a chunk of tokens held back.
  const int64_t most =
      scenario_.reader_tokens +
      int64_t{call.n} * (call.output.stream_interval * (1 + scenario_.limits.depth) + 1);
  if (call.unread > most) return Wrong(call, "more tokens wait for its reader than may");
  if (call.unread > scenario_.reader_tokens && !call.paused) {
    call.paused = true;
    ++call.num_pauses;
    call.paused_at = clock_.Now();
    stalled_.push_back(&call);
    Post(engine::PauseCommand{call.handle});
  }
}

void Simulation::OnSequenceEnd(Call& call, Call::Sequence& sequence, const TokenChunk& chunk) {
  sequence.ended = true;
  --call.num_live;
  --live_sequences_;
  const FinishReason reason = chunk.sequence_end->reason;
  const std::string name(engine::Name(reason));
  if (reason == FinishReason::kError) return;  // judged with the request
  if (reason == FinishReason::kDeadline) {
    if (!Late(call, call.max_time)) return Wrong(call, "out of time before its time");
  } else if (reason != sequence.due) {
    return Wrong(call, "ends with " + name + " for " + std::string(engine::Name(sequence.due)));
  }
  if (!sequence.detokenizer) return;
  sequence.detokenizer->Finish(sequence.expected_text);
  if (reason == FinishReason::kDeadline ? !sequence.expected_text.starts_with(sequence.text)
                                        : sequence.text != sequence.expected_text)
    Wrong(call, "its text is not that of its tokens");
}

std::string Simulation::Unjustified(const Call& call, const engine::RequestEnd& end) const {
  const absl::Status& status = end.status;
  const auto unless = [](bool justified, const char* why) {
    return justified ? std::string() : std::string(why);
  };
  switch (status.code()) {
    case absl::StatusCode::kOk:
      // Who was out of time when the device said so has not heard it.
      if (call.nonfinite && !Late(call, call.max_time))
        return "ends well after logits that were not finite";
      for (const Call::Sequence& sequence : call.sequences) {
        if (!sequence.ended) return "ends before its sequences";
      }
      return "";
    case absl::StatusCode::kCancelled:
      return unless(call.cancelled, "cancelled by nobody");
    case absl::StatusCode::kAborted:
      return unless(call.aborted && end.error_reason == "SLOW_READER", "aborted by nobody");
    case absl::StatusCode::kDeadlineExceeded:
      return unless(
          Late(call, call.deadline) || (!call.admitted && Late(call, call.queue_deadline)),
          "its deadline has not passed");
    case absl::StatusCode::kInvalidArgument:
      return unless(call.impossible, "refused for being impossible, which it is not");
    case absl::StatusCode::kUnavailable:
      if (end.error_reason == "ENGINE_DOWN") return unless(runner_->failed(), "the engine is up");
      return unless(closed_ || call.after_drain, "nobody drains, or it came before");
    case absl::StatusCode::kInternal:
      if (end.error_reason == "NON_FINITE_LOGITS")
        return unless(call.nonfinite, "its logits were finite");
      return unless(end.error_reason == "ENGINE_FAULT" && runner_->failed(), "nothing failed");
    default:
      return "ends with " + status.ToString();
  }
}

void Simulation::OnRequestEnd(Call& call, const engine::RequestEnd& end) {
  if (call.num_live != 0) return Wrong(call, "ends before its sequences");
  if (std::string why = Unjustified(call, end); !why.empty()) return Wrong(call, why);
  if (end.status.ok() && (call.impossible || call.after_drain))
    return Wrong(call, "what is to be refused ends well");
  int tokens = 0;
  for (const Call::Sequence& sequence : call.sequences) tokens += sequence.num_tokens;
  if (end.usage.prompt_tokens != call.num_prompt) return Wrong(call, "wrong usage: prompt");
  const int resumed = static_cast<int>(call.resumed.size());
  // A call that is refused accounts for its prompt alone.
  if (end.status.ok() ? end.usage.completion_tokens != tokens
                      : end.usage.completion_tokens < tokens - resumed)
    return Wrong(call, "wrong usage: completion");
  if (end.status.ok() && end.usage.resumed_tokens != resumed)
    return Wrong(call, "wrong usage: resumed");
  const int most_cached = resumed == 0 ? std::max(0, call.num_prompt - 1) : call.num_prompt;
  if (end.usage.cached_prompt_tokens > most_cached ||
      end.kv.peak_pages > call.n * (scenario_.limits.num_pages - 1) || end.kv.page_seconds < 0 ||
      (end.kv.recomputed_tokens > 0 && end.kv.preemptions == 0))
    return Wrong(call, "wrong accounts of its pages");
  ++(end.status.ok() ? count_.ends_ok : count_.ends_other);
  preemptions_ += static_cast<uint64_t>(end.kv.preemptions - call.preemptions);
  call.preemptions = static_cast<int>(end.kv.preemptions);
  call.ended = true;
  --open_;
  // Who got a place in this turn, or came to its end by what the device said, was there when others
  // got one.
  const bool got_place =
      std::any_of(admissions_.begin(), admissions_.end(),
                  [&](const SimRunner::Admission& admission) { return admission.call == &call; });
  if (got_place || call.nonfinite) {
    ended_late_.push_back(&call);
  } else {
    fairness_.End(&call);
  }
  if (call.paused) std::erase(stalled_, &call);
  call.ticket->Ended(stats_.requests_waiting.load(), clock_.Now());
  call.ticket.reset();
  ledger_.Leave(call);
}

// ---------------------------------------------------------------- invariants

void Simulation::CheckAdmissions(Time began) {
  const auto preempted = [this](Call* call) {
    ++preemptions_;
    ++call->preemptions;
  };
  for (Call* call : runner_->TakePreempted()) {
    if (!call->open()) continue;
    if (!fairness_.Waits(*call)) preempted(call);
    fairness_.Wait(call);
  }
  // Others may be waiting of which that shows only when they get a place again.
  const bool knows_all = preemptions_ == stats_.preemptions.load();
  for (const SimRunner::Admission& admission : admissions_) {
    Call* call = admission.call;
    if (!admission.first && !fairness_.Waits(*call)) preempted(call);
    std::string wrong = fairness_.Admit(call, admission.first, knows_all, began);
    if (!wrong.empty()) return violations_.Add(std::move(wrong));
    if (!call->first_planned || call->n == 1) fairness_.Leave(call);
    call->first_planned = true;
  }
  for (Call* call : std::exchange(ended_late_, {})) fairness_.End(call);
}

void Simulation::CheckTurn(Time began) {
  for (const Call* call : nonfinite_) {
    if (!call->ended && !runner_->failed())
      return Wrong(*call, "goes on after logits that are not finite");
  }
  CheckAdmissions(began);
  if (violations_.any()) return;
  for (const Call* call : cancelled_) {
    if (call->open()) return Wrong(*call, "was cancelled and goes on");
  }
  cancelled_.clear();
  const auto due = NextDeadline();
  if (due && *due <= began) return violations_.Add("a deadline passed and nothing ended");
  if (load_.live_sequences.load() != live_sequences_) {
    return violations_.Add("the engine counts " + std::to_string(load_.live_sequences.load()) +
                           " live sequences, " + std::to_string(live_sequences_) + " are open");
  }
  if (load_.posted_sequences.load() != 0 || load_.posted_tokens.load() != 0)
    return violations_.Add("work counts as posted after it was taken");
  if (stats_.requests_waiting.load() > scenario_.limits.max_queue + scenario_.limits.max_batch)
    return violations_.Add("more sequences wait than may");
  if (runner_->failed() == stats_.up.load())
    return violations_.Add("health does not say whether the engine is up");
  const auto patience = kPatience + 4 * static_cast<uint64_t>(scenario_.limits.max_context);
  if (runner_->steps_without_progress() > patience)
    return violations_.Add("steps are taken and nobody gets on");
  if (turns_to_page_check_-- > 0) return;
  // The check reads the whole pool: with large ones not after every turn of every seed.
  turns_to_page_check_ =
      static_cast<uint64_t>(scenario_.limits.num_pages / (scenario_.thorough ? 256 : 16));
  CheckPages();
}

void Simulation::CheckPages() {
  ++count_.page_checks;
  if (auto fault = loop_->Fault()) violations_.Add("accounts of pages: " + *fault);
  if (std::string wrong = ledger_.Compare(admission_); !wrong.empty())
    violations_.Add(std::move(wrong));
}

void Simulation::Finish() {
  for (const auto& call : calls_) {
    if (call && call->open()) Read(*call);
  }
  for (const auto& call : calls_) {
    if (call) call->reads = true;
  }
  Pass(std::nullopt);
  if (violations_.any()) return;
  // What is in flight for calls that have ended.
  while (runner_->in_flight() && !violations_.any()) Turn();
  LookLate(/*everywhere=*/true);
  if (violations_.any()) return;
  CheckPages();
  if (load_.live_tokens.load() != 0 || live_sequences_ != 0)
    return violations_.Add("something lives after everything has ended");
  if (stats_.leaked_pages.load() != 0) return violations_.Add("leaked pages are counted");
  if (stats_.requests_running.load() != 0 || stats_.requests_waiting.load() != 0 ||
      stats_.waiting_prompt_tokens.load() != 0)
    return violations_.Add("gauges do not fall to 0");
  const auto pool = loop_->FlushPrefixCache();
  if (pool.free != pool.total)
    return violations_.Add(std::to_string(pool.total - pool.free) + " pages never came back");
  CheckPages();
}

}  // namespace sluice::sim
