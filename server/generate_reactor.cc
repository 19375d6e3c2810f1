#include "server/generate_reactor.h"

#include <algorithm>
#include <utility>

#include "engine/base/failpoint.h"
#include "engine/base/status.h"
#include "server/byte_buffers.h"
#include "server/gate.h"
#include "server/messages.h"
#include "server/prompt_encoder.h"

namespace sluice::server {
namespace {

// Those that a place is for: where others want one, those whose readers stopped do not have it.
int64_t WaitingIn(const ServedModel& model, const Frontend& frontend) {
  int64_t waiting = -frontend.paused_calls.load();
  for (const auto& engine : model.dispatcher().engines()) {
    waiting += engine->stats().requests_waiting.load(std::memory_order_relaxed);
  }
  return std::max<int64_t>(0, waiting);
}

RpcError DeadlineError(std::string message) {
  return MakeError(absl::StatusCode::kDeadlineExceeded, std::move(message), "DEADLINE_EXCEEDED");
}

}  // namespace

GenerateReactor* GenerateReactor::Start(Frontend& frontend, grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* body) {
  auto call = std::make_shared<GenerateReactor>(frontend, context);
  {
    engine::MutexLock lock(call->mutex_);
    call->self_ = call;
  }
  call->Begin(body);
  return call.get();  // OnDone comes only after gRPC has it
}

GenerateReactor::GenerateReactor(Frontend& frontend, grpc::CallbackServerContext* context)
    : frontend_(frontend),
      context_(context),
      arrival_(std::chrono::steady_clock::now()),
      deadline_(DeadlineOf(*context)),
      peer_(context->peer()),
      trace_(TraceContextOf(*context)) {}

std::optional<RpcError> GenerateReactor::Refusal() const {
  if (deadline_ && *deadline_ <= arrival_) {
    return DeadlineError("the deadline had passed when the call arrived");
  }
  if (frontend_.refusing.load()) return Draining();
  const ServedModel* model = frontend_.model.load();
  if (model == nullptr) return StillLoading();
  if (!model->dispatcher().any_up()) {
    return MakeError(absl::StatusCode::kUnavailable, "no engine is up", "ENGINE_DOWN");
  }
  return std::nullopt;
}

void GenerateReactor::Begin(const grpc::ByteBuffer* body) {
  // Opened before it looks whether the server drains: a drain that begins now waits for this call.
  const auto handle = frontend_.calls.Open(shared_from_this(), peer_);
  if (!handle.ok()) {
    return Reject(QueueFull(engine::Message(handle.status()), frontend_.admission.RetryDelay()));
  }
  const ServedModel* model = frontend_.model.load();
  {
    engine::MutexLock lock(mutex_);
    handle_ = *handle;
    model_ = model;
  }
  if (const auto refusal = Refusal()) return Reject(*refusal);
  if (const auto refusal = Enter(static_cast<int64_t>(body->Length()))) return Reject(*refusal);
  if (body->Length() <= Frontend::kInlineBodyBytes) return Open(*model, *body);
  TextPool::Job job;
  job.bytes = body->Length();
  // A copy shares the bytes and outlives a call that is cancelled while it waits.
  job.run = [self = shared_from_this(), model, copy = *body] { self->Open(*model, copy); };
  job.refuse = [self = shared_from_this()](TextPool::Refusal refusal) {
    self->Reject(self->frontend_.NotTaken(refusal));
  };
  frontend_.text_pool.Run(TextPool::Kind::kGenerate, std::move(job));
}

std::optional<RpcError> GenerateReactor::Enter(int64_t bytes) {
  Identity identity;
  // The port has let it in; its credentials may have been taken back since.
  if (frontend_.authenticator.Identify(ClaimsOf(*context_), &identity) !=
      Authenticator::Verdict::kAllowed) {
    return MakeError(absl::StatusCode::kUnauthenticated, Authenticator::kUnauthenticatedText, "");
  }
  tenant_ = std::move(identity.tenant);
  policy_ = frontend_.admission.policy();
  RpcError refusal;
  auto ticket = frontend_.admission.Enter(tenant_, bytes, arrival_, &refusal);
  if (ticket == nullptr) return refusal;
  engine::MutexLock lock(mutex_);
  if (!finishing_) ticket_ = std::move(ticket);
  return std::nullopt;
}

void GenerateReactor::Open(const ServedModel& model, const grpc::ByteBuffer& body) {
  engine::RequestHandle handle;
  {
    engine::MutexLock lock(mutex_);
    if (finishing_) return;  // cancelled or cut while it waited for a thread
    handle = handle_;
  }
  GenerateDraft draft;
  {
    v1::GenerateRequest request;
    if (const auto error = ParseGenerate(Flatten(body), &request)) return Reject(*error);
    if (const auto error = CheckRights(request, model)) return Reject(*error);
    if (const auto error =
            ValidateGenerate(request, model, frontend_.seeds.Next(), arrival_, &draft)) {
      return Reject(*error);
    }
    draft.request.cache.domain = engine::CacheDomain(tenant_, request.cache().cache_salt());
  }
  draft.request.handle = handle;
  draft.request.deadline = deadline_;
  draft.request.tenant = tenant_;
  draft.request.tenant_weight = policy_->Of(tenant_).weight;
  std::string name = draft.request.id;
  if (!frontend_.calls.TakeName(tenant_, &name)) {
    return Reject(MakeError(absl::StatusCode::kAlreadyExists,
                            "request_id " + Quote(name) + " belongs to a call that is running",
                            "DUPLICATE_REQUEST"));
  }
  draft.request.id = name;
  draft.accepted.set_request_id(name);
  {
    engine::MutexLock lock(mutex_);
    if (finishing_) return frontend_.calls.ReleaseName(tenant_, name);
    name_ = request_id_ = std::move(name);
  }
  // A template may take any time that its limits allow, however short the messages are.
  const bool is_quick = !draft.conversation && draft.text.size() <= Frontend::kInlineTextBytes;
  const bool on_text_thread = body.Length() > Frontend::kInlineBodyBytes;
  if (is_quick || on_text_thread) return Submit(model, std::move(draft));
  TextPool::Job job;
  job.bytes = std::max(draft.text.size(), body.Length());
  job.run = [self = shared_from_this(), model = &model, draft = std::move(draft)]() mutable {
    self->Submit(*model, std::move(draft));
  };
  job.refuse = [self = shared_from_this()](TextPool::Refusal refusal) {
    self->Reject(self->frontend_.NotTaken(refusal));
  };
  frontend_.text_pool.Run(TextPool::Kind::kGenerate, std::move(job));
}

void GenerateReactor::Submit(const ServedModel& model, GenerateDraft draft) {
  {
    engine::MutexLock lock(mutex_);
    if (finishing_) return;  // cancelled or cut while it waited for a thread
  }
  if (const auto error = EncodePrompt(model, &draft)) return Reject(*error);
  const auto tenant_most = MaxTokensOf(policy_->Of(tenant_), draft.request, PoolPositionsOf(model));
  if (const auto error = ResolveLengths(model, tenant_most, &draft)) return Reject(*error);
  if (const auto error = Reserve(model, draft.request)) return Reject(*error);
  Dispatch(model, std::move(draft));
}

std::optional<RpcError> GenerateReactor::CheckRights(const v1::GenerateRequest& request,
                                                     const ServedModel& model) const {
  const TenantLimits& limits = policy_->Of(tenant_);
  const bool asks_for_it = request.model().empty() || request.model() == model.name;
  if (asks_for_it && !limits.MayUse(model.name)) return ModelNotAllowed(model.name);
  const int32_t priority = request.scheduling().priority();
  if (priority > limits.max_priority && !model.limits.Violation(Field::kPriority, priority)) {
    return PermissionDenied("scheduling.priority: at most " + std::to_string(limits.max_priority) +
                                " is allowed, is " + std::to_string(priority),
                            "PRIORITY_NOT_ALLOWED");
  }
  if (limits.max_tokens && request.stopping().max_tokens() > *limits.max_tokens) {
    return BadField("stopping.max_tokens", "the tenant may ask for at most " +
                                               std::to_string(*limits.max_tokens) + ", is " +
                                               std::to_string(request.stopping().max_tokens()));
  }
  return std::nullopt;
}

std::optional<RpcError> GenerateReactor::Reserve(const ServedModel& model,
                                                 const engine::Request& request) {
  const Admission::Demand demand = {.prompt_tokens = static_cast<int64_t>(request.prompt.size()),
                                    .positions = request.max_positions(),
                                    .pool_positions = PoolPositionsOf(model),
                                    .sequences = request.sampling.n,
                                    .priority = request.priority,
                                    .backlog = WaitingIn(model, frontend_),
                                    .deadline = deadline_};
  engine::MutexLock lock(mutex_);
  if (finishing_) return std::nullopt;  // its ticket may be gone
  return ticket_->Reserve(demand, std::chrono::steady_clock::now());
}

void GenerateReactor::Dispatch(const ServedModel& model, GenerateDraft draft) {
  int64_t ahead = -1;
  for (const auto& engine : model.dispatcher().engines()) {
    const int64_t waiting = engine->stats().requests_waiting.load(std::memory_order_relaxed);
    if (engine->up() && (ahead < 0 || waiting < ahead)) ahead = waiting;
  }
  draft.accepted.set_queue_position(static_cast<int32_t>(std::max<int64_t>(0, ahead)));
  absl::Status status;
  {
    // Held over the dispatch so that a cancel comes either before it (nothing is dispatched) or
    // after it (the engine knows whom to cancel).
    engine::MutexLock lock(mutex_);
    if (finishing_) return;
    prompt_tokens_ = static_cast<int64_t>(draft.request.prompt.size());
    events_.emplace(std::move(draft.accepted), draft.request.output, draft.request.sampling.n);
    status = model.dispatcher().Dispatch(std::move(draft.request));
    dispatched_ = status.ok();
    if (dispatched_) ticket_->Accepted();
  }
  if (status.ok()) return Pump();
  if (absl::IsResourceExhausted(status)) {
    return Reject(QueueFull(engine::Message(status), frontend_.admission.RetryDelay()));
  }
  if (absl::IsInvalidArgument(status)) {
    return Reject(BadField("sampling.n", engine::Message(status)));
  }
  const bool draining = frontend_.refusing.load();
  Reject(MakeError(status.code(), engine::Message(status), draining ? "DRAINING" : "ENGINE_DOWN"));
}

void GenerateReactor::Reject(const RpcError& error) {
  Action action;
  {
    engine::MutexLock lock(mutex_);
    if (!ClaimFinish(error.code, error.reason)) return;
    action.finish = true;
    action.error = error;
  }
  frontend_.counters.CountRejected(error.reason);
  Perform(std::move(action));
}

void GenerateReactor::Add(engine::TokenChunk&& chunk) {
  bool ended = false;
  {
    engine::MutexLock lock(mutex_);
    if (!events_) return;
    ended = chunk.request_end.has_value();
    if (!chunk.token_ids.empty() && ticket_) {
      ticket_->Generated(static_cast<int64_t>(chunk.token_ids.size()),
                         std::chrono::steady_clock::now());
    }
    events_->Add(std::move(chunk));
    UpdatePause();
  }
  if (ended) CloseIfOver();
}

void GenerateReactor::UpdatePause() {
  if (finishing_ || events_->end()) return;
  // Only a write brings the sequence back, so there must be something to write.
  if (!paused_since_ && events_->much_waits() && events_->ready()) {
    paused_since_ = std::chrono::steady_clock::now();
    ++frontend_.paused_calls;
    model_->dispatcher().Pause(handle_);
  } else if (paused_since_ && events_->little_waits()) {
    paused_since_.reset();
    --frontend_.paused_calls;
    model_->dispatcher().Resume(handle_);
  }
}

void GenerateReactor::Pump() {
  Action action;
  {
    engine::MutexLock lock(mutex_);
    action = NextAction();
  }
  Perform(std::move(action));
}

GenerateReactor::Action GenerateReactor::NextAction() {
  Action action;
  if (finishing_ || !events_ || writes_begun_ > writes_done_) return action;
  if (cancelled_) {
    action.error = CancelError();
    action.finish = ClaimFinish(action.error.code, action.error.reason);
    return action;
  }
  action.message = events_->Next();
  if (action.message) {
    action.write = ++writes_begun_;
    write_since_ = std::chrono::steady_clock::now();
    action.more_follows = events_->ready();
    UpdatePause();
    if (events_->finished()) {
      action.finish = ClaimFinish(absl::StatusCode::kOk, "");
    }
  } else if (events_->end() && !events_->end()->status.ok()) {
    action.error = ErrorOf(*events_->end());
    action.finish = ClaimFinish(action.error.code, action.error.reason);
  }
  return action;
}

void GenerateReactor::Perform(Action action) {
  const auto self = shared_from_this();  // the write may end the call before it returns
  const bool sends = action.message || action.finish;
  if (sends && engine::Fails(engine::Failpoint::kWrite)) context_->TryCancel();
  if (action.message) {
    outgoing_ = Serialize(*action.message);
    grpc::WriteOptions options;
    if (action.finish) return StartWriteAndFinish(&outgoing_, options, grpc::Status::OK);
    // Travels with the message that follows, which OnWriteDone writes at once. Not the first: with
    // headers in the batch, gRPC 1.51 calls OnWriteDone only when something else makes it flush.
    if (action.more_follows && action.write > 1) options.set_buffer_hint();
    StartWrite(&outgoing_, options);
    engine::MutexLock lock(mutex_);
    writes_called_ = std::max(writes_called_, action.write);
  } else if (action.finish) {
    Finish(ToGrpcStatus(action.error, *context_));
  }
}

RpcError GenerateReactor::ErrorOf(const engine::RequestEnd& end) const {
  RpcError error = MakeError(end.status.code(), engine::Message(end.status), end.error_reason);
  if (error.reason == "ENGINE_FAULT" && events_->tokens_sent() == 0) {
    return MakeError(absl::StatusCode::kUnavailable, std::move(error.message), "ENGINE_DOWN");
  }
  if (error.code == absl::StatusCode::kResourceExhausted) {
    return QueueFull(std::move(error.message), frontend_.admission.RetryDelay());
  }
  if (error.reason.empty() && error.code == absl::StatusCode::kDeadlineExceeded) {
    error.reason = "DEADLINE_EXCEEDED";
  }
  if (!error.reason.empty()) {
    error.metadata.emplace_back("tokens_sent", std::to_string(events_->tokens_sent()));
  }
  return error;
}

bool GenerateReactor::ClaimFinish(absl::StatusCode code, const std::string& reason) {
  if (finishing_) return false;
  finishing_ = true;
  finished_at_ = std::chrono::steady_clock::now();
  if (paused_since_) --frontend_.paused_calls;
  code_ = code;
  reason_ = reason;
  // Before the client can know that the call is over, so that it can use the id and the place
  // again.
  if (ticket_ && dispatched_) {
    ticket_->Ended(WaitingIn(*model_, frontend_), finished_at_);
  }
  ticket_.reset();
  if (!name_.empty()) frontend_.calls.ReleaseName(tenant_, name_);
  name_.clear();
  return true;
}

void GenerateReactor::OnWriteDone(bool ok) {
  Action action;
  {
    engine::MutexLock lock(mutex_);
    ++writes_done_;
    writes_called_ = std::max(writes_called_, writes_done_);
    if (!ok) cancelled_ = true;  // OnCancel comes too, and tells the engine
    action = NextAction();
  }
  Perform(std::move(action));
}

RpcError GenerateReactor::CancelError() const {
  if (deadline_ && *deadline_ <= std::chrono::steady_clock::now()) {
    return DeadlineError("the deadline passed");
  }
  return MakeError(absl::StatusCode::kCancelled, "the client cancelled the call", "");
}

void GenerateReactor::OnCancel() {
  Action action;
  {
    engine::MutexLock lock(mutex_);
    cancelled_ = true;
    const RpcError error = CancelError();
    if (dispatched_ && !events_->end()) {
      model_->dispatcher().Cancel(handle_, engine::MakeStatus(error.code, error.message));
    }
    if (events_) events_->Abandon();
    // With a write in flight its OnWriteDone ends the call: Finish must not overtake StartWrite.
    if (writes_begun_ > writes_done_) return;
    action.error = error;
    action.finish = ClaimFinish(error.code, error.reason);
  }
  Perform(std::move(action));
}

void GenerateReactor::CheckStall(engine::Time now) {
  Action action;
  {
    engine::MutexLock lock(mutex_);
    const engine::Duration patience = frontend_.options.stall_timeout;
    if (done_ || !self_) return;
    if (finishing_) {
      // The status waits behind bytes that the reader never takes: tear the stream down.
      if (!torn_down_ && now - finished_at_ > patience) {
        torn_down_ = true;
        context_->TryCancel();
      }
      return;
    }
    const bool writing = writes_begun_ > writes_done_ && writes_called_ == writes_begun_;
    const bool stalled = writing && now - write_since_ > patience;
    const bool paused = writing && paused_since_ && now - *paused_since_ > patience;
    if (!stalled && !paused) return;
    const std::string message =
        "the reader took nothing for " + FormatNumber(engine::Seconds(patience)) + " seconds";
    if (dispatched_ && !events_->end()) {
      model_->dispatcher().Cancel(handle_, engine::MakeStatus(absl::StatusCode::kAborted, message));
    }
    action.error = MakeError(absl::StatusCode::kAborted, message, "SLOW_READER");
    action.error.metadata.emplace_back("tokens_sent", std::to_string(events_->tokens_sent()));
    events_->Abandon();
    action.finish = ClaimFinish(action.error.code, action.error.reason);
  }
  Perform(std::move(action));
}

void GenerateReactor::Cut(const std::string& reason, const std::string& message) {
  Action action;
  {
    engine::MutexLock lock(mutex_);
    if (finishing_) return;
    if (dispatched_) {
      if (!events_->end()) {
        model_->dispatcher().Cancel(handle_, engine::Unavailable(message));
      }
      // Ends when the engine has, unless the reader may be too slow to see how.
      if (writes_begun_ == writes_done_ || writes_called_ < writes_begun_) return;
    }
    action.error = MakeError(absl::StatusCode::kUnavailable, message, reason);
    if (dispatched_ && events_->end() && !events_->end()->error_reason.empty()) {
      action.error = ErrorOf(*events_->end());  // it had failed before
    } else if (dispatched_) {
      action.error.metadata.emplace_back("tokens_sent", std::to_string(events_->tokens_sent()));
    }
    if (dispatched_) events_->Abandon();
    action.finish = ClaimFinish(action.error.code, action.error.reason);
  }
  Perform(std::move(action));
}

void GenerateReactor::OnDone() {
  std::shared_ptr<GenerateReactor> self;
  {
    engine::MutexLock lock(mutex_);
    done_ = true;
    self = std::move(self_);
  }
  CloseIfOver();
}

void GenerateReactor::CloseIfOver() {
  engine::RequestHandle handle;
  {
    engine::MutexLock lock(mutex_);
    const bool engine_over = !dispatched_ || events_->end().has_value();
    if (!done_ || !engine_over || closed_) return;
    closed_ = true;
    handle = handle_;
    if (dispatched_) model_->dispatcher().Forget(handle);
  }
  Report();
  frontend_.calls.Close(handle);
}

void GenerateReactor::Report() {
  AccessLog::Record record;
  {
    engine::MutexLock lock(mutex_);
    record.request_id = request_id_;
    record.tenant = tenant_;
    record.trace = trace_;
    record.peer = peer_;
    record.code = code_;
    record.reason = reason_;
    record.prompt_tokens = prompt_tokens_;
    if (events_ && dispatched_) {
      record.finish_reason =
          code_ == absl::StatusCode::kOk ? events_->finish_reason() : engine::FinishReason::kError;
      record.tokens_sent = events_->tokens_sent();
      record.usage = events_->end()->usage;
      record.timing = events_->end()->timing;
    }
    record.seconds = engine::Seconds(finished_at_ - arrival_);
  }
  frontend_.counters.CountRequest("Generate", record.code, record.finish_reason, record.seconds);
  frontend_.access_log.Write(record);
}

}  // namespace sluice::server
