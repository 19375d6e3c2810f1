#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "server/authenticator.h"
#include "server/certificates.h"

namespace grpc {
class ServerContextBase;
}

namespace sluice::server {

// How callers of a port prove themselves.
struct PortSecurity {
  // Judges every call. Outlives the server.
  Authenticator* authenticator = nullptr;
  bool health_is_free = false;  // Health is answered without credentials
  // Set: TLS, and with a client CA in it a certificate is required of every client. Outlives the
  // server.
  const CertificateStore* certificates = nullptr;
};

// The credentials of a port, made of gRPC's C interface because its C++ one lacks two things: to
// hand over certificates at each handshake, so that a pair that was checked as a whole replaces
// another as a whole (its file watcher checks no pair), and to judge calls on a port without TLS.
// Judging here covers every method, those of the library's own services and unknown ones too, and
// comes before the body of a call is looked at.
std::shared_ptr<grpc::ServerCredentials> MakePortCredentials(const PortSecurity& security);

// What the call of a handler claims.
Claims ClaimsOf(const grpc::ServerContextBase& context);

}  // namespace sluice::server
