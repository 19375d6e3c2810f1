#pragma once

#include "server/frontend.h"
#include "server/gate.h"
#include "server/generate_reactor.h"
#include "server/unary_methods.h"
#include "sluice/v1/inference.grpc.pb.h"

namespace sluice::server {

// sluice.v1.Inference with raw handlers: the library answers malformed messages of typed ones with
// an empty UNIMPLEMENTED, we answer INVALID_ARGUMENT and say why. Thread-safe.
class InferenceService final : public v1::Inference::WithRawCallbackMethod_Generate<
                                   v1::Inference::WithRawCallbackMethod_Tokenize<
                                       v1::Inference::WithRawCallbackMethod_Detokenize<
                                           v1::Inference::WithRawCallbackMethod_GetModel<
                                               v1::Inference::WithRawCallbackMethod_ListModels<
                                                   v1::Inference::WithRawCallbackMethod_GetLoad<
                                                       v1::Inference::Service>>>>>> {
 public:
  explicit InferenceService(Frontend* frontend) : frontend_(*frontend) {}

  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;

  grpc::ServerWriteReactor<Bytes>* Generate(Context* context, const Bytes* body) override {
    if (const auto refusal = Refusal(*context)) return RefusedStream(*refusal);
    return GenerateReactor::Start(frontend_, context, body);
  }
  grpc::ServerUnaryReactor* Tokenize(Context* context, const Bytes* body, Bytes* out) override {
    if (const auto refusal = Refusal(*context)) return RefusedCall(*context, *refusal);
    return server::Tokenize(frontend_, context, body, out);
  }
  grpc::ServerUnaryReactor* Detokenize(Context* context, const Bytes* body, Bytes* out) override {
    if (const auto refusal = Refusal(*context)) return RefusedCall(*context, *refusal);
    return server::Detokenize(frontend_, context, body, out);
  }
  grpc::ServerUnaryReactor* GetModel(Context* context, const Bytes* body, Bytes* out) override {
    if (const auto refusal = Refusal(*context)) return RefusedCall(*context, *refusal);
    return server::GetModel(frontend_, context, body, out);
  }
  grpc::ServerUnaryReactor* ListModels(Context* context, const Bytes* body, Bytes* out) override {
    if (const auto refusal = Refusal(*context)) return RefusedCall(*context, *refusal);
    return server::ListModels(frontend_, context, body, out);
  }
  grpc::ServerUnaryReactor* GetLoad(Context* context, const Bytes* body, Bytes* out) override {
    if (const auto refusal = Refusal(*context)) return RefusedCall(*context, *refusal);
    return server::GetLoad(frontend_, context, body, out);
  }

 private:
  std::optional<grpc::Status> Refusal(const Context& context) {
    return Refuse(frontend_.authenticator, Authenticator::Purpose::kInference, context);
  }

  Frontend& frontend_;
};

}  // namespace sluice::server
