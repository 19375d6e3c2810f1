#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "server/certificates.h"

namespace sluice::server {

// The credentials of a port: TLS with `certificates`, and a certificate required of every client if
// there is a client CA among them; plain text when it is null. `certificates` outlives the result.
//
// Made of gRPC's C interface because the C++ one cannot hand over certificates at each handshake,
// so that a pair that was checked as a whole replaces another as a whole (its file watcher checks
// no pair). Callers are not judged here: gRPC 1.51 aborts when a client sends the header
// grpclb_client_stats to a port whose credentials look at metadata.
std::shared_ptr<grpc::ServerCredentials> MakePortCredentials(const CertificateStore* certificates);

}  // namespace sluice::server
