#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "server/frontend.h"

namespace sluice::server {

// The methods with one answer. Each returns its reactor at once; `response` is written before the
// reactor is finished, on a text thread when there is much to do.
grpc::ServerUnaryReactor* Tokenize(Frontend& frontend, grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* body, grpc::ByteBuffer* response);
grpc::ServerUnaryReactor* Detokenize(Frontend& frontend, grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* body, grpc::ByteBuffer* response);
grpc::ServerUnaryReactor* GetModel(Frontend& frontend, grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* body, grpc::ByteBuffer* response);
grpc::ServerUnaryReactor* ListModels(Frontend& frontend, grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* body, grpc::ByteBuffer* response);
grpc::ServerUnaryReactor* GetLoad(Frontend& frontend, grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* body, grpc::ByteBuffer* response);

}  // namespace sluice::server
