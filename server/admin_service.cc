#include "server/admin_service.h"

#include <spdlog/spdlog.h>

#include "engine/base/failpoint.h"
#include "engine/base/status.h"
#include "server/byte_buffers.h"
#include "server/gate.h"
#include "server/messages.h"
#include "server/process_stats.h"

namespace sluice::server {
namespace {

// False, and the call is over, when it may not be made or its body is not a `Request`.
template <typename Request>
bool Open(Frontend& frontend, const grpc::ByteBuffer& body, grpc::CallbackServerContext& context,
          grpc::ServerUnaryReactor* reactor, Request* request) {
  if (const auto refusal =
          Refuse(frontend.authenticator, Authenticator::Purpose::kAdmin, context)) {
    reactor->Finish(*refusal);
    return false;
  }
  const auto error = ParseBody(Flatten(body), request);
  if (error) reactor->Finish(ToGrpcStatus(*error, context));
  return !error;
}

}  // namespace

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer* body,
                                              grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  v1::DrainRequest request;
  if (!Open(frontend_, *body, *context, reactor, &request)) return reactor;
  spdlog::info("draining: an administrator asked for it");
  begin_drain_();
  v1::DrainResponse answer;
  answer.set_open_streams(frontend_.calls.size());
  *response = Serialize(answer);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::Reload(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* body,
                                               grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  v1::ReloadRequest request;
  if (!Open(frontend_, *body, *context, reactor, &request)) return reactor;
  v1::ReloadResponse answer;
  for (const auto& [name, status] : frontend_.reloader.Check()) {
    auto* file = answer.add_files();
    file->set_name(name);
    file->set_in_force(status.ok());
    file->set_error(engine::Message(status));
  }
  *response = Serialize(answer);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::GetStatus(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* body,
                                                  grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  v1::GetStatusRequest request;
  if (!Open(frontend_, *body, *context, reactor, &request)) return reactor;
  v1::Status answer;
  answer.set_build(frontend_.options.build);
  const bool draining = frontend_.draining.load();
  if (const ServedModel* model = frontend_.model.load()) {
    answer.set_model(model->name);
    *answer.mutable_load() = DescribeLoad(*model, draining, frontend_.calls.size());
  } else {
    answer.mutable_load()->set_draining(draining);
  }
  answer.set_uptime(engine::Seconds(std::chrono::steady_clock::now() - frontend_.started));
  answer.set_connections(frontend_.connections->size());
  answer.set_short_of_memory(frontend_.admission.short_of_memory());
  answer.set_resident_bytes(ResidentBytes());
  *response = Serialize(answer);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::SetFailpoint(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* body,
                                                     grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  v1::SetFailpointRequest request;
  if (!Open(frontend_, *body, *context, reactor, &request)) return reactor;
  const absl::Status set = engine::SetFailpoint(request.setting());
  if (set.ok()) {
    *response = Serialize(v1::SetFailpointResponse());
    reactor->Finish(grpc::Status::OK);
  } else if (absl::IsUnimplemented(set)) {
    reactor->Finish(ToGrpcStatus(MakeError(set.code(), engine::Message(set), "FEATURE"), *context));
  } else {
    reactor->Finish(ToGrpcStatus(BadField("setting", engine::Message(set)), *context));
  }
  return reactor;
}

}  // namespace sluice::server
