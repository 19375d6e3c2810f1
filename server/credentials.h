#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"

namespace sluice::server {

// What a caller may do. Value.
struct Scopes {
  bool inference = false;
  bool admin = false;
};

// Who a caller is. Value.
struct Identity {
  std::string tenant;
  Scopes scopes;
};

// The tenant of callers where nobody has to say who they are.
inline constexpr char kDefaultTenant[] = "default";

// What a file of credentials holds:
//
//   {"tokens": [{"sha256": "9f86...", "tenant": "acme", "scopes": ["inference"]}],
//    "certificates": [{"san": "spiffe://cluster/ns/app", "tenant": "acme", "scopes": ["admin"]}]}
//
// Tokens stand there as the SHA-256 of their bytes, in hex: a token has to be random and long, so
// that nothing is gained by guessing at its hash. Immutable; thread-safe.
class CredentialTable {
 public:
  static constexpr size_t kMaxTokens = 4096;

  // INVALID_ARGUMENT with the path of what is wrong; never with a part of a hash.
  static absl::StatusOr<std::shared_ptr<const CredentialTable>> Parse(const std::string& json);

  // The identity of a token; null when it is unknown. Takes the same time for every token of a
  // length: its hash is compared with all, to the last byte.
  const Identity* OfToken(std::string_view token) const;
  // The identity of a certificate by its subject alternative names; null when none is known.
  const Identity* OfCertificate(const std::vector<std::string>& names) const;

 private:
  using Hash = std::array<uint8_t, 32>;

  CredentialTable() = default;

  std::vector<Hash> hashes_;
  std::vector<Identity> of_hash_;
  std::unordered_map<std::string, Identity> of_name_;
};

// "acme-7": 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.'.
bool IsTenantName(std::string_view name);

}  // namespace sluice::server
