#include "server/health_service.h"

#include <optional>
#include <utility>

#include "server/byte_buffers.h"
#include "server/gate.h"
#include "server/messages.h"

namespace sluice::server {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// One Watch stream: writes the status whenever it differs from the one written last.
class HealthService::Watcher final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                                     public std::enable_shared_from_this<Watcher> {
 public:
  Watcher(HealthService* health, std::string service)
      : health_(health), service_(std::move(service)) {}

  void Keep() {
    engine::MutexLock lock(mutex_);
    self_ = shared_from_this();
  }

  void Update() {
    std::optional<ServingStatus> status;
    {
      engine::MutexLock lock(mutex_);
      status = NextStatus();
    }
    if (status) Write(*status);
  }

  void End(const grpc::Status& status) {
    {
      engine::MutexLock lock(mutex_);
      if (finishing_) return;
      if (writing_) {  // OnWriteDone ends it
        if (!end_) end_ = status;
        return;
      }
      finishing_ = true;
    }
    Finish(status);
  }

  void OnWriteDone(bool ok) override {
    std::optional<grpc::Status> end;
    {
      engine::MutexLock lock(mutex_);
      writing_ = false;
      if (!ok && !end_) end_ = grpc::Status(grpc::StatusCode::CANCELLED, "the client is gone");
      end = end_;
    }
    if (end) {
      End(*end);
    } else {
      Update();
    }
  }

  void OnCancel() override { End(grpc::Status(grpc::StatusCode::CANCELLED, "cancelled")); }

  void OnDone() override {
    std::shared_ptr<Watcher> self;
    {
      engine::MutexLock lock(mutex_);
      self = std::move(self_);
    }
    health_->Unregister(self);
  }

 private:
  std::optional<ServingStatus> NextStatus() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finishing_ || writing_ || end_) return std::nullopt;
    const ServingStatus now = health_->StatusOf(service_);
    if (written_ == now) return std::nullopt;
    written_ = now;
    writing_ = true;
    return now;
  }

  void Write(ServingStatus status) {
    HealthCheckResponse response;
    response.set_status(status);
    outgoing_ = Serialize(response);
    StartWrite(&outgoing_);
  }

  HealthService* const health_;
  const std::string service_;
  engine::Mutex mutex_;
  std::shared_ptr<Watcher> self_ ABSL_GUARDED_BY(mutex_);  // until OnDone
  std::optional<ServingStatus> written_ ABSL_GUARDED_BY(mutex_);
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ByteBuffer outgoing_;
};

void HealthService::SetModel(const std::string& name) {
  {
    engine::MutexLock lock(mutex_);
    model_service_ = "model/" + name;
  }
  Publish();
}

void HealthService::SetReady(bool ready) {
  if (ready_.exchange(ready) != ready) Publish();
}

void HealthService::SetStarted() {
  if (!started_.exchange(true)) Publish();
}

void HealthService::SetLive(bool live) {
  if (live_.exchange(live) != live) Publish();
}

HealthService::ServingStatus HealthService::StatusOf(const std::string& service) const {
  const auto serving = [](bool yes) {
    return yes ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
  };
  if (service.empty() || service == "sluice.v1.Inference") return serving(ready_.load());
  if (service == "startup") return serving(started_.load());
  if (service == "liveness") return serving(live_.load());
  engine::MutexLock lock(mutex_);
  if (!model_service_.empty() && service == model_service_) return serving(ready_.load());
  return HealthCheckResponse::SERVICE_UNKNOWN;
}

void HealthService::Publish() {
  std::set<std::shared_ptr<Watcher>> watchers;
  {
    engine::MutexLock lock(mutex_);
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) watcher->Update();
}

bool HealthService::Register(const std::shared_ptr<Watcher>& watcher) {
  engine::MutexLock lock(mutex_);
  if (ended_ || watchers_.size() >= kMaxWatches) return false;
  watchers_.insert(watcher);
  return true;
}

void HealthService::Unregister(const std::shared_ptr<Watcher>& watcher) {
  engine::MutexLock lock(mutex_);
  watchers_.erase(watcher);
}

void HealthService::EndWatches() {
  std::set<std::shared_ptr<Watcher>> watchers;
  {
    engine::MutexLock lock(mutex_);
    ended_ = true;
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) {
    watcher->End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is going away"));
  }
}

std::optional<grpc::Status> HealthService::Refusal(
    const grpc::CallbackServerContext& context) const {
  if (authenticator_ == nullptr) return std::nullopt;
  return Refuse(*authenticator_, Authenticator::Purpose::kHealth, context);
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* body,
                                               grpc::ByteBuffer* response) {
  if (const auto refusal = Refusal(*context)) return RefusedCall(*context, *refusal);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  HealthCheckRequest request;
  if (const auto error = ParseBody(Flatten(*body), &request)) {
    reactor->Finish(ToGrpcStatus(*error, *context));
    return reactor;
  }
  HealthCheckResponse answer;
  answer.set_status(StatusOf(request.service()));
  if (answer.status() == HealthCheckResponse::SERVICE_UNKNOWN) {
    reactor->Finish(
        grpc::Status(grpc::StatusCode::NOT_FOUND, "no service " + Quote(request.service())));
    return reactor;
  }
  *response = Serialize(answer);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* HealthService::Watch(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* body) {
  if (const auto refusal = Refusal(*context)) return RefusedStream(*refusal);
  HealthCheckRequest request;
  const auto error = ParseBody(Flatten(*body), &request);
  auto watcher = std::make_shared<Watcher>(this, request.service());
  watcher->Keep();
  if (error) {
    watcher->End(ToGrpcStatus(*error, *context));
  } else if (!Register(watcher)) {
    watcher->End(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                              "at most " + std::to_string(kMaxWatches) + " watches are served"));
  } else {
    watcher->Update();
  }
  return watcher.get();  // it keeps itself until OnDone
}

}  // namespace sluice::server
