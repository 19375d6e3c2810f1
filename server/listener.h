#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "server/acceptor.h"
#include "server/authenticator.h"
#include "server/certificates.h"
#include "server/connection_table.h"
#include "server/flood_guard.h"
#include "server/other_calls.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace sluice::server {

struct ListenOptions {
  std::string name;     // of the address in messages: "--listen"
  std::string address;  // "host:port", port 0 takes a free one
  // Judges calls that no service of ours takes; our services judge by themselves. Outlives it all.
  Authenticator* authenticator = nullptr;
  // Set: TLS. Outlives it all.
  const CertificateStore* certificates = nullptr;
  int max_connections = 4096;
  int max_connections_of_address = 1024;
  bool reflection = false;
  bool channelz = false;
  std::vector<grpc::Service*> services;
};

// Running. The acceptor is stopped before the guard, and that before the server is shut down:
// nothing takes a connection that comes later.
struct Listener {
  std::shared_ptr<ConnectionTable> connections;
  std::shared_ptr<grpc::ServerCredentials> credentials;
  std::unique_ptr<OtherCalls> other_calls;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<FloodGuard> guard;
  std::unique_ptr<Acceptor> acceptor;
};

// Serves with bounds on what a connection may cost. INVALID_ARGUMENT for a malformed address,
// UNAVAILABLE when it cannot be bound.
absl::StatusOr<Listener> Listen(const ListenOptions& options);

// INVALID_ARGUMENT naming `what` unless `address` is "host:port".
absl::Status CheckAddress(const std::string& what, const std::string& address);

}  // namespace sluice::server
