#include "server/admin_service.h"

#include <spdlog/spdlog.h>

#include "engine/base/status.h"
#include "server/byte_buffers.h"
#include "server/messages.h"

namespace sluice::server {
namespace {

// False, and the call is over, when the body is not a `Request`.
template <typename Request>
bool Parse(const grpc::ByteBuffer& body, grpc::CallbackServerContext& context,
           grpc::ServerUnaryReactor* reactor) {
  Request request;
  const auto error = ParseBody(Flatten(body), &request);
  if (error) reactor->Finish(ToGrpcStatus(*error, context));
  return !error;
}

}  // namespace

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer* body,
                                              grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!Parse<v1::DrainRequest>(*body, *context, reactor)) return reactor;
  spdlog::info("draining: an administrator asked for it");
  begin_drain_();
  v1::DrainResponse answer;
  answer.set_open_streams(calls_.size());
  *response = Serialize(answer);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::Reload(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* body,
                                               grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!Parse<v1::ReloadRequest>(*body, *context, reactor)) return reactor;
  v1::ReloadResponse answer;
  for (const auto& [name, status] : reloader_.Check()) {
    auto* file = answer.add_files();
    file->set_name(name);
    file->set_in_force(status.ok());
    file->set_error(engine::Message(status));
  }
  *response = Serialize(answer);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace sluice::server
