#pragma once

#include <functional>

#include "server/call_registry.h"
#include "server/reloader.h"
#include "sluice/v1/admin.grpc.pb.h"

namespace sluice::server {

// sluice.v1.Admin. Who may call is settled before a call gets here. Thread-safe.
class AdminService final : public v1::Admin::WithRawCallbackMethod_Drain<
                               v1::Admin::WithRawCallbackMethod_Reload<v1::Admin::Service>> {
 public:
  // All outlive the service. `begin_drain` returns at once.
  AdminService(std::function<void()> begin_drain, Reloader* reloader, const CallRegistry* calls)
      : begin_drain_(std::move(begin_drain)), reloader_(*reloader), calls_(*calls) {}

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* body,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Reload(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* body,
                                   grpc::ByteBuffer* response) override;

 private:
  const std::function<void()> begin_drain_;
  Reloader& reloader_;
  const CallRegistry& calls_;
};

}  // namespace sluice::server
