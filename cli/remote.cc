#include "cli/remote.h"

#include <fstream>
#include <sstream>

#include "engine/base/status.h"

namespace sluice::cli {
namespace {

// Empty for no path.
absl::StatusOr<std::string> ReadFile(const char* flag, const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || text.str().empty()) {
    return engine::InvalidArgument(std::string(flag) + ": " + path + " cannot be read or is empty");
  }
  return text.str();
}

}  // namespace

void AddRemoteFlags(CLI::App& app, RemoteFlags* flags, const std::string& description,
                    const std::string& group) {
  app.add_option("--server", flags->server, description)->type_name("ADDRESS:PORT")->group(group);
  const auto file = [&](const char* name, std::string& path, const char* what) {
    app.add_option(name, path, what)->type_name("FILE")->group(group);
  };
  file("--tls-ca", flags->tls_ca, "With --server: issuers to trust (PEM); unset: plain text");
  file("--tls-cert", flags->tls_cert, "With --tls-ca: the own certificate (PEM)");
  file("--tls-key", flags->tls_key, "With --tls-cert: its private key (PEM)");
  file("--token-file", flags->token_file, "With --server: file with the token to send");
}

grpc::ChannelArguments RetryingArguments() {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(R"({"methodConfig": [{
    "name": [{"service": "sluice.v1.Inference"}],
    "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.1s", "maxBackoff": "1s",
                    "backoffMultiplier": 3, "retryableStatusCodes": ["UNAVAILABLE"]}}]})");
  return arguments;
}

absl::StatusOr<Remote> Remote::Open(const RemoteFlags& flags) {
  if (flags.tls_cert.empty() != flags.tls_key.empty() ||
      (!flags.tls_cert.empty() && flags.tls_ca.empty())) {
    return engine::InvalidArgument("--tls-cert and --tls-key belong together, and need --tls-ca");
  }
  Remote remote;
  remote.server_ = flags.server;
  grpc::SslCredentialsOptions tls;
  ASSIGN_OR_RETURN(tls.pem_root_certs, ReadFile("--tls-ca", flags.tls_ca));
  ASSIGN_OR_RETURN(tls.pem_cert_chain, ReadFile("--tls-cert", flags.tls_cert));
  ASSIGN_OR_RETURN(tls.pem_private_key, ReadFile("--tls-key", flags.tls_key));
  remote.credentials_ =
      flags.tls_ca.empty() ? grpc::InsecureChannelCredentials() : grpc::SslCredentials(tls);
  ASSIGN_OR_RETURN(std::string token, ReadFile("--token-file", flags.token_file));
  token.erase(token.find_last_not_of(" \t\r\n") + 1);
  if (!token.empty()) remote.authorization_ = "Bearer " + token;
  return remote;
}

std::shared_ptr<grpc::Channel> Remote::Connect(grpc::ChannelArguments arguments) const {
  // A proxy of the environment would see tokens, and would be asked for the loopback too.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(server_, credentials_, arguments);
}

void Remote::Sign(grpc::ClientContext& context) const {
  if (!authorization_.empty()) context.AddMetadata("authorization", authorization_);
}

}  // namespace sluice::cli
