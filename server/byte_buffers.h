#pragma once

#include <google/protobuf/message_lite.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <optional>
#include <string>

#include "engine/base/clock.h"

namespace sluice::server {

// The bytes of a message that gRPC received.
std::string Flatten(const grpc::ByteBuffer& buffer);
// A message as gRPC sends it.
grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message);
// When the client's deadline passes; nothing when it set none.
std::optional<engine::Time> DeadlineOf(const grpc::ServerContextBase& context);

}  // namespace sluice::server
