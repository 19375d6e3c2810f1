#include "server/port_credentials.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include <string>

namespace sluice::server {
namespace {

// What gRPC is given at handshakes.
struct Handover {
  const CertificateStore* certificates;
  // The last. gRPC calls for certificates one handshake at a time.
  std::shared_ptr<const CertificateSet> given;
};

// Called by gRPC before each handshake.
grpc_ssl_certificate_config_reload_status FetchCertificates(
    void* user_data, grpc_ssl_server_certificate_config** config) {
  Handover& handover = *static_cast<Handover*>(user_data);
  const auto current = handover.certificates->current();
  if (current == handover.given) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
  const grpc_ssl_pem_key_cert_pair pair = {current->key.c_str(), current->chain.c_str()};
  // gRPC 1.51 aborts without roots, also where no certificate is asked for and they mean nothing.
  const std::string& roots = current->client_ca.empty() ? current->chain : current->client_ca;
  *config = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
  handover.given = current;
  return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
}

grpc_server_credentials* MakeCredentials(Handover* handover) {
  if (handover->certificates == nullptr) return grpc_insecure_server_credentials_create();
  const bool asks = !handover->certificates->current()->client_ca.empty();
  return grpc_ssl_server_credentials_create_with_options(
      grpc_ssl_server_credentials_create_options_using_config_fetcher(
          asks ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
               : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
          FetchCertificates, handover));
}

class PortCredentials final : public grpc::ServerCredentials {
 public:
  explicit PortCredentials(const CertificateStore* certificates)
      : handover_{certificates, nullptr}, credentials_(MakeCredentials(&handover_)) {}
  ~PortCredentials() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  Handover handover_;
  grpc_server_credentials* const credentials_;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> MakePortCredentials(const CertificateStore* certificates) {
  return std::make_shared<PortCredentials>(certificates);
}

}  // namespace sluice::server
