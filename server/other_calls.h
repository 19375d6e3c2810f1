#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/server.h>

#include <memory>
#include <optional>

#include "server/authenticator.h"

namespace sluice::server {

// Takes the calls of a port that no service of ours takes: those of services that gRPC's libraries
// bring, reflection and channelz, and unknown ones. gRPC has no place at which to judge who calls
// its services; so they live in a server that listens nowhere, and what is let in is passed on to
// it. Thread-safe.
class OtherCalls final : public grpc::CallbackGenericService {
 public:
  // `inner`: the server of the library's services; null when there are none. `authenticator`
  // outlives this.
  OtherCalls(Authenticator* authenticator, std::unique_ptr<grpc::Server> inner);
  ~OtherCalls() override;

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override;

 private:
  class Refused;
  class Relay;

  Authenticator& authenticator_;
  const std::unique_ptr<grpc::Server> inner_;
  std::optional<grpc::GenericStub> stub_;
};

}  // namespace sluice::server
