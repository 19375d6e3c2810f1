#pragma once

#include <functional>

#include "server/frontend.h"
#include "sluice/v1/admin.grpc.pb.h"

namespace sluice::server {

// sluice.v1.Admin. Thread-safe.
class AdminService final
    : public v1::Admin::WithRawCallbackMethod_Drain<v1::Admin::WithRawCallbackMethod_Reload<
          v1::Admin::WithRawCallbackMethod_GetStatus<
              v1::Admin::WithRawCallbackMethod_SetFailpoint<v1::Admin::Service>>>> {
 public:
  // `frontend` outlives the service. `begin_drain` returns at once.
  AdminService(std::function<void()> begin_drain, Frontend* frontend)
      : begin_drain_(std::move(begin_drain)), frontend_(*frontend) {}

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* body,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Reload(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* body,
                                   grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* body,
                                      grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* SetFailpoint(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* body,
                                         grpc::ByteBuffer* response) override;

 private:
  const std::function<void()> begin_drain_;
  Frontend& frontend_;
};

}  // namespace sluice::server
