#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>
#include <grpcpp/support/status.h>

#include <optional>

#include "server/authenticator.h"

namespace sluice::server {

// What the call of a handler claims.
Claims ClaimsOf(const grpc::ServerContextBase& context);

// The first thing in every handler, before a byte of the message is looked at: how a call ends that
// may not be made; nothing when it may.
std::optional<grpc::Status> Refuse(Authenticator& authenticator, Authenticator::Purpose purpose,
                                   const grpc::ServerContextBase& context);

// A stream that ends at once.
grpc::ServerWriteReactor<grpc::ByteBuffer>* RefusedStream(const grpc::Status& status);
// A call with one answer that ends at once.
grpc::ServerUnaryReactor* RefusedCall(grpc::CallbackServerContext& context,
                                      const grpc::Status& status);

}  // namespace sluice::server
