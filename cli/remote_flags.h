#pragma once

#include <string>

#include "CLI/CLI.hpp"

namespace sluice::cli {

// A server and how to reach it. Value.
struct RemoteFlags {
  std::string server;      // address:port; empty: none
  std::string tls_ca;      // PEM file of issuers to trust; empty: plain text
  std::string tls_cert;    // PEM file of the own certificate; empty: none
  std::string tls_key;     // PEM file of its key
  std::string token_file;  // holds the token to send; empty: none
};

// Adds --server and its companions. `description` is of --server.
void AddRemoteFlags(CLI::App& app, RemoteFlags* flags, const std::string& description,
                    const std::string& group);

}  // namespace sluice::cli
