#include "server/port_credentials.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpcpp/server_context.h>

#include <string_view>
#include <utility>

namespace sluice::server {
namespace {

std::string_view View(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

// The facts of a verified peer; owned by the credentials.
void AddCertificate(const grpc_auth_context* context, Claims* claims) {
  claims->has_certificate = grpc_auth_context_peer_is_authenticated(context) == 1;
  if (!claims->has_certificate) return;
  grpc_auth_property_iterator names =
      grpc_auth_context_find_properties_by_name(context, GRPC_X509_SAN_PROPERTY_NAME);
  while (const grpc_auth_property* name = grpc_auth_property_iterator_next(&names)) {
    claims->names.emplace_back(name->value, name->value_length);
  }
}

// What the callbacks work on; owned by gRPC's credentials.
struct Gate {
  PortSecurity security;
  // Handed over last. gRPC calls for certificates one handshake at a time.
  std::shared_ptr<const CertificateSet> handed_over;
};

// Answers at once and in the caller's thread: nothing here waits.
void JudgeCall(void* state, grpc_auth_context* context, const grpc_metadata* metadata,
               size_t num_metadata, grpc_process_auth_metadata_done_cb done, void* user_data) {
  const PortSecurity& security = static_cast<Gate*>(state)->security;
  Claims claims;
  std::string_view path;
  for (size_t i = 0; i < num_metadata; ++i) {
    const std::string_view key = View(metadata[i].key);
    if (key == ":path") path = View(metadata[i].value);
    if (key == "authorization") claims.authorization.emplace_back(View(metadata[i].value));
  }
  AddCertificate(context, &claims);
  const Authenticator::Purpose purpose = Authenticator::PurposeOf(path);
  Identity identity;
  Authenticator::Verdict verdict = Authenticator::Verdict::kAllowed;
  if (purpose != Authenticator::Purpose::kHealth || !security.health_is_free) {
    verdict = security.authenticator->Judge(claims, purpose, &identity);
  }
  grpc_status_code code = GRPC_STATUS_OK;
  const char* text = nullptr;
  if (verdict == Authenticator::Verdict::kUnauthenticated) {
    code = GRPC_STATUS_UNAUTHENTICATED;
    text = Authenticator::kUnauthenticatedText;
  } else if (verdict == Authenticator::Verdict::kDenied) {
    code = GRPC_STATUS_PERMISSION_DENIED;
    text = Authenticator::kDeniedText;
  }
  done(user_data, nullptr, 0, nullptr, 0, code, text);
}

// Called by gRPC before each handshake.
grpc_ssl_certificate_config_reload_status FetchCertificates(
    void* user_data, grpc_ssl_server_certificate_config** config) {
  Gate& gate = *static_cast<Gate*>(user_data);
  const auto current = gate.security.certificates->current();
  if (current == gate.handed_over) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
  const grpc_ssl_pem_key_cert_pair pair = {current->key.c_str(), current->chain.c_str()};
  // gRPC 1.51 aborts without roots, also where no certificate is asked for and they mean nothing.
  const std::string& roots = current->client_ca.empty() ? current->chain : current->client_ca;
  *config = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
  gate.handed_over = current;
  return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
}

grpc_server_credentials* MakeTransport(Gate* gate) {
  if (gate->security.certificates == nullptr) return grpc_insecure_server_credentials_create();
  const bool asks = !gate->security.certificates->current()->client_ca.empty();
  return grpc_ssl_server_credentials_create_with_options(
      grpc_ssl_server_credentials_create_options_using_config_fetcher(
          asks ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
               : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
          FetchCertificates, gate));
}

class PortCredentials final : public grpc::ServerCredentials {
 public:
  explicit PortCredentials(const PortSecurity& security)
      : PortCredentials(new Gate{security, {}}) {}
  ~PortCredentials() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  explicit PortCredentials(Gate* gate) : credentials_(MakeTransport(gate)) {
    grpc_auth_metadata_processor processor;
    processor.process = JudgeCall;
    processor.state = gate;
    processor.destroy = [](void* state) { delete static_cast<Gate*>(state); };
    grpc_server_credentials_set_auth_metadata_processor(credentials_, processor);
  }

  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  grpc_server_credentials* const credentials_;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> MakePortCredentials(const PortSecurity& security) {
  return std::make_shared<PortCredentials>(security);
}

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

}  // namespace sluice::server
