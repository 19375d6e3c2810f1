#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "grpc/health/v1/health.grpc.pb.h"

#include "engine/base/mutex.h"
#include "server/authenticator.h"

namespace sluice::server {

// grpc.health.v1 by its own rules: NOT_SERVING until the model answers, and again from the
// beginning of a drain or when the last engine died. Load never changes it. Names: "" and
// "sluice.v1.Inference" (ready for calls), "model/NAME" (the same, once loaded), "startup" (the
// model was loaded, for good), "liveness" (the process need not be restarted). Check never waits
// for an engine. Thread-safe.
class HealthService final : public grpc::health::v1::Health::WithRawCallbackMethod_Check<
                                grpc::health::v1::Health::WithRawCallbackMethod_Watch<
                                    grpc::health::v1::Health::Service>> {
 public:
  static constexpr size_t kMaxWatches = 64;

  // Judges callers; null: everybody may ask. Outlives the service.
  explicit HealthService(Authenticator* authenticator) : authenticator_(authenticator) {}

  // The model's name becomes known.
  void SetModel(const std::string& name);
  void SetReady(bool ready);
  void SetStarted();
  void SetLive(bool live);
  // Ends every Watch, and those that come later.
  void EndWatches();

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* body,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Watch(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* body) override;

 private:
  class Watcher;
  using ServingStatus = grpc::health::v1::HealthCheckResponse::ServingStatus;

  // SERVICE_UNKNOWN for a name that is none of ours.
  ServingStatus StatusOf(const std::string& service) const;
  void Publish();
  bool Register(const std::shared_ptr<Watcher>& watcher);
  void Unregister(const std::shared_ptr<Watcher>& watcher);

  std::optional<grpc::Status> Refusal(const grpc::CallbackServerContext& context) const;

  Authenticator* const authenticator_;
  std::atomic<bool> ready_{false};
  std::atomic<bool> started_{false};
  std::atomic<bool> live_{true};
  mutable engine::Mutex mutex_;
  std::string model_service_ ABSL_GUARDED_BY(mutex_);
  std::set<std::shared_ptr<Watcher>> watchers_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace sluice::server
