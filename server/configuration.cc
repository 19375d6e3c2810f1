#include "server/configuration.h"

#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"

namespace sluice::server {
namespace {

using Contents = std::vector<std::string>;

absl::Status AddCredentials(Frontend* frontend) {
  const std::string& path = frontend->options.auth_file;
  if (path.empty()) return absl::OkStatus();
  const auto apply = [frontend](const Contents& contents) {
    ASSIGN_OR_RETURN(auto table, CredentialTable::Parse(contents[0]));
    frontend->authenticator.Replace(std::move(table));
    return absl::OkStatus();
  };
  return engine::Prefix("--auth-file", frontend->reloader.Add({"auth", {path}, apply}));
}

absl::Status AddCertificates(Frontend* frontend) {
  const ServerOptions& options = frontend->options;
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return engine::InvalidArgument("--tls-cert and --tls-key belong together");
  }
  if (options.tls_cert.empty()) {
    if (options.tls_client_ca.empty()) return absl::OkStatus();
    return engine::InvalidArgument("--tls-client-ca needs --tls-cert and --tls-key");
  }
  std::vector<std::string> paths = {options.tls_cert, options.tls_key};
  if (!options.tls_client_ca.empty()) paths.push_back(options.tls_client_ca);
  const auto apply = [frontend](const Contents& contents) {
    const bool asks = contents.size() > 2;
    if (asks && contents[2].empty()) return engine::InvalidArgument("the client CA is empty");
    ASSIGN_OR_RETURN(CertificateSet set,
                     CertificateSet::Check(contents[0], contents[1], asks ? contents[2] : ""));
    frontend->certificates.Replace(std::move(set));
    return absl::OkStatus();
  };
  return engine::Prefix("--tls-cert", frontend->reloader.Add({"tls", std::move(paths), apply}));
}

absl::Status AddTenants(Frontend* frontend) {
  const std::string& path = frontend->options.tenants_file;
  if (path.empty()) return absl::OkStatus();
  const auto apply = [frontend](const Contents& contents) {
    ASSIGN_OR_RETURN(auto policy, TenantPolicy::Parse(contents[0]));
    frontend->admission.SetPolicy(std::move(policy));
    return absl::OkStatus();
  };
  return engine::Prefix("--tenants", frontend->reloader.Add({"tenants", {path}, apply}));
}

}  // namespace

absl::Status LoadConfiguration(Frontend* frontend) {
  RETURN_IF_ERROR(AddCredentials(frontend));
  RETURN_IF_ERROR(AddTenants(frontend));
  return AddCertificates(frontend);
}

}  // namespace sluice::server
