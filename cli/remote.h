#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/remote_flags.h"
#include "grpcpp/grpcpp.h"

namespace sluice::cli {

// Of a channel whose calls are tried again when they end UNAVAILABLE before their first message:
// the connection was closed as the call began, or nobody listened (gRFC A6).
grpc::ChannelArguments RetryingArguments();

// Makes connections to a server as the flags say. Immutable; thread-safe.
class Remote {
 public:
  // Reads the files. INVALID_ARGUMENT naming the one that cannot be read.
  static absl::StatusOr<Remote> Open(const RemoteFlags& flags);

  // Straight to the server, whatever proxy the environment names.
  std::shared_ptr<grpc::Channel> Connect(grpc::ChannelArguments arguments) const;
  // Says who calls. Every context once.
  void Sign(grpc::ClientContext& context) const;

 private:
  Remote() = default;

  std::string server_;
  std::shared_ptr<grpc::ChannelCredentials> credentials_;
  std::string authorization_;
};

}  // namespace sluice::cli
