#include "server/gate.h"

#include <grpc/grpc_security_constants.h>

namespace sluice::server {

Claims ClaimsOf(const grpc::ServerContextBase& context) {
  Claims claims;
  const auto headers = context.client_metadata().equal_range("authorization");
  for (auto place = headers.first; place != headers.second; ++place) {
    claims.authorization.emplace_back(place->second.data(), place->second.size());
  }
  const auto peer = context.auth_context();
  claims.has_certificate = peer->IsPeerAuthenticated();
  if (!claims.has_certificate) return claims;
  for (const grpc::string_ref& name : peer->FindPropertyValues(GRPC_X509_SAN_PROPERTY_NAME)) {
    claims.names.emplace_back(name.data(), name.size());
  }
  return claims;
}

std::optional<grpc::Status> Refuse(Authenticator& authenticator, Authenticator::Purpose purpose,
                                   const grpc::ServerContextBase& context) {
  Identity identity;
  switch (authenticator.Judge(ClaimsOf(context), purpose, &identity)) {
    case Authenticator::Verdict::kAllowed:
      return std::nullopt;
    case Authenticator::Verdict::kDenied:
      return grpc::Status(grpc::StatusCode::PERMISSION_DENIED, Authenticator::kDeniedText);
    case Authenticator::Verdict::kUnauthenticated:
      break;
  }
  return grpc::Status(grpc::StatusCode::UNAUTHENTICATED, Authenticator::kUnauthenticatedText);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* RefusedStream(const grpc::Status& status) {
  class Refused final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
   public:
    explicit Refused(const grpc::Status& status) { Finish(status); }
    void OnDone() override { delete this; }
  };
  return new Refused(status);
}

grpc::ServerUnaryReactor* RefusedCall(grpc::CallbackServerContext& context,
                                      const grpc::Status& status) {
  grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

}  // namespace sluice::server
