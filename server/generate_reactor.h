#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "engine/base/mutex.h"
#include "server/event_queue.h"
#include "server/frontend.h"
#include "server/generate_validator.h"
#include "server/trace_context.h"

namespace sluice::server {

// One Generate stream, from its bytes to its status. gRPC calls On*, delivery threads Add and Pump,
// the watcher CheckStall and Cut; the engine never sees it. It keeps itself alive until OnDone, and
// the registry keeps it until the engine has ended the request too, so late tokens and late
// cancels find an object that knows it is over.
//
// One write is in flight at most; what comes meanwhile merges in the queue. Finish is called once,
// by whoever sets `finishing_`. No lock is held while gRPC is called, except for TryCancel.
class GenerateReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                              public Call,
                              public std::enable_shared_from_this<GenerateReactor> {
 public:
  // The reactor of a new call, which gRPC owns until OnDone. Returns at once.
  static GenerateReactor* Start(Frontend& frontend, grpc::CallbackServerContext* context,
                                const grpc::ByteBuffer* body);

  GenerateReactor(Frontend& frontend, grpc::CallbackServerContext* context);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void Add(engine::TokenChunk&& chunk) override;
  void Pump() override;
  void CheckStall(engine::Time now) override;
  void Cut(const std::string& reason, const std::string& message) override;

 private:
  void Begin(const grpc::ByteBuffer* body);
  // Finds out whose it is, and asks whether it may come in.
  std::optional<RpcError> Enter(int64_t bytes);
  // Why a call cannot even be looked at now.
  std::optional<RpcError> Refusal() const;
  // Parses, validates and submits. On a gRPC thread, or a text thread when there is much to parse.
  void Open(const ServedModel& model, const grpc::ByteBuffer& body);
  // Validated: tokenises, resolves lengths, dispatches. On a gRPC or a text thread.
  void Submit(const ServedModel& model, GenerateDraft draft);
  void Dispatch(const ServedModel& model, GenerateDraft draft);
  // What the request asks for and the tenant may not have.
  std::optional<RpcError> CheckRights(const v1::GenerateRequest& request,
                                      const ServedModel& model) const;
  // Reserves what it will take, at most.
  std::optional<RpcError> Reserve(const ServedModel& model, const engine::Request& request);
  // Ends a call that no engine knows.
  void Reject(const RpcError& error);

  // What the next StartWrite or Finish is, decided under the lock and carried out without it.
  struct Action {
    std::optional<v1::GenerateResponse> message;
    bool more_follows = false;
    bool finish = false;
    RpcError error;  // of a finish that is not OK
    int64_t write = 0;
  };
  Action NextAction() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Perform(Action action);
  RpcError ErrorOf(const engine::RequestEnd& end) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  RpcError CancelError() const;
  // Claims the end of the call; false when it is claimed already.
  bool ClaimFinish(absl::StatusCode code, const std::string& reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UpdatePause() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CloseIfOver();
  void Report();

  Frontend& frontend_;
  grpc::CallbackServerContext* const context_;  // valid until OnDone
  const engine::Time arrival_;
  const std::optional<engine::Time> deadline_;
  const std::string peer_;
  const std::optional<TraceContext> trace_;
  std::string tenant_;                          // set by Begin
  std::shared_ptr<const TenantPolicy> policy_;  // of the time at which it came; set by Begin

  engine::Mutex mutex_;
  std::shared_ptr<GenerateReactor> self_ ABSL_GUARDED_BY(mutex_);  // until OnDone
  const ServedModel* model_ ABSL_GUARDED_BY(mutex_) = nullptr;
  engine::RequestHandle handle_ ABSL_GUARDED_BY(mutex_);
  std::string name_ ABSL_GUARDED_BY(mutex_);  // request id while it is taken
  std::string request_id_ ABSL_GUARDED_BY(mutex_);
  int64_t prompt_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<EventQueue> events_ ABSL_GUARDED_BY(mutex_);  // once the length is known
  std::unique_ptr<Admission::Ticket> ticket_ ABSL_GUARDED_BY(mutex_);
  bool dispatched_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;

  // Writes begun, handed to gRPC and done; a write is in flight when begun > done.
  int64_t writes_begun_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t writes_called_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t writes_done_ ABSL_GUARDED_BY(mutex_) = 0;
  engine::Time write_since_ ABSL_GUARDED_BY(mutex_){};
  std::optional<engine::Time> paused_since_ ABSL_GUARDED_BY(mutex_);
  grpc::ByteBuffer outgoing_;  // of the thread that began the write, then of gRPC until it is done

  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  engine::Time finished_at_ ABSL_GUARDED_BY(mutex_){};
  absl::StatusCode code_ ABSL_GUARDED_BY(mutex_) = absl::StatusCode::kOk;
  std::string reason_ ABSL_GUARDED_BY(mutex_);
  bool torn_down_ ABSL_GUARDED_BY(mutex_) = false;  // TryCancel was called
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace sluice::server
