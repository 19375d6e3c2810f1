#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "server/acceptor.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace sluice::server {

// Running. The acceptor is stopped before the server is shut down: nothing takes a connection that
// comes later.
struct Listener {
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<Acceptor> acceptor;
};

// Serves `services` on `address` ("host:port", port 0 takes a free one), with bounds on what a
// connection may cost. INVALID_ARGUMENT for a malformed address, UNAVAILABLE when it cannot be
// bound.
absl::StatusOr<Listener> Listen(const std::string& address, bool reflection,
                                const std::vector<grpc::Service*>& services);

// INVALID_ARGUMENT naming `what` unless `address` is "host:port".
absl::Status CheckAddress(const char* what, const std::string& address);

}  // namespace sluice::server
