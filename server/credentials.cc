#include "server/credentials.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "engine/base/status.h"
#include "server/json_reader.h"
#include "server/rpc_error.h"

namespace sluice::server {
namespace {

using nlohmann::json;

std::optional<std::array<uint8_t, 32>> ParseHash(const std::string& hex) {
  std::array<uint8_t, 32> hash{};
  if (hex.size() != 2 * hash.size()) return std::nullopt;
  for (size_t i = 0; i < hex.size(); ++i) {
    const char c = hex[i];
    int digit = 0;
    if (c >= '0' && c <= '9') {
      digit = c - '0';
    } else if (c >= 'a' && c <= 'f') {
      digit = c - 'a' + 10;
    } else if (c >= 'A' && c <= 'F') {
      digit = c - 'A' + 10;
    } else {
      return std::nullopt;
    }
    hash[i / 2] = static_cast<uint8_t>(hash[i / 2] << 4 | digit);
  }
  return hash;
}

// The tenant and scopes that every entry has.
Identity ParseIdentity(JsonReader& reader) {
  Identity identity;
  const auto tenant = reader.String("tenant");
  if (!tenant || !IsTenantName(*tenant)) {
    reader.Fail("tenant", "expected 1 to 64 letters, digits, '-', '_' and '.'");
  } else {
    identity.tenant = *tenant;
  }
  const json* scopes = reader.Array("scopes");
  if (scopes == nullptr || scopes->empty()) {
    reader.Fail("scopes", "expected an array with inference, admin or both");
    return identity;
  }
  for (const json& scope : *scopes) {
    if (scope == "inference") {
      identity.scopes.inference = true;
    } else if (scope == "admin") {
      identity.scopes.admin = true;
    } else {
      reader.Fail("scopes", "expected inference and admin only");
    }
  }
  return identity;
}

std::string At(const char* key, size_t index) {
  return std::string(key) + "[" + std::to_string(index) + "]";
}

}  // namespace

bool IsTenantName(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  });
}

absl::StatusOr<std::shared_ptr<const CredentialTable>> CredentialTable::Parse(
    const std::string& text) {
  std::shared_ptr<CredentialTable> table(new CredentialTable());
  ASSIGN_OR_RETURN(const json file, ParseJson(text));
  JsonReader reader(file, "", {"tokens", "certificates"});
  const json* tokens = reader.Array("tokens");
  const json* certificates = reader.Array("certificates");
  RETURN_IF_ERROR(reader.status());
  const size_t num_tokens = tokens == nullptr ? 0 : tokens->size();
  const size_t num_certificates = certificates == nullptr ? 0 : certificates->size();
  if (num_tokens > kMaxTokens || num_certificates > kMaxTokens) {
    return engine::InvalidArgument("more than " + std::to_string(kMaxTokens) + " entries");
  }
  if (num_tokens + num_certificates == 0) {
    return engine::InvalidArgument("no tokens and no certificates: nobody could call");
  }
  for (size_t i = 0; i < num_tokens; ++i) {
    JsonReader entry((*tokens)[i], At("tokens", i), {"sha256", "tenant", "scopes"});
    Identity identity = ParseIdentity(entry);
    const auto hash = ParseHash(entry.String("sha256").value_or(""));
    if (!hash) entry.Fail("sha256", "expected 64 hex digits");
    RETURN_IF_ERROR(entry.status());
    if (std::find(table->hashes_.begin(), table->hashes_.end(), *hash) != table->hashes_.end()) {
      entry.Fail("sha256", "the same token stands in the file twice");
      return entry.status();
    }
    table->hashes_.push_back(*hash);
    table->of_hash_.push_back(std::move(identity));
  }
  for (size_t i = 0; i < num_certificates; ++i) {
    JsonReader entry((*certificates)[i], At("certificates", i), {"san", "tenant", "scopes"});
    Identity identity = ParseIdentity(entry);
    const std::string name = entry.String("san").value_or("");
    if (name.empty()) entry.Fail("san", "expected a DNS name or URI");
    if (!table->of_name_.emplace(name, std::move(identity)).second) {
      entry.Fail("san", Quote(name) + " stands in the file twice");
    }
    RETURN_IF_ERROR(entry.status());
  }
  return table;
}

const Identity* CredentialTable::OfToken(std::string_view token) const {
  Hash hash;
  SHA256(reinterpret_cast<const uint8_t*>(token.data()), token.size(), hash.data());
  const Identity* found = nullptr;
  for (size_t i = 0; i < hashes_.size(); ++i) {
    if (CRYPTO_memcmp(hashes_[i].data(), hash.data(), hash.size()) == 0) found = &of_hash_[i];
  }
  return found;
}

const Identity* CredentialTable::OfCertificate(const std::vector<std::string>& names) const {
  for (const std::string& name : names) {
    const auto place = of_name_.find(name);
    if (place != of_name_.end()) return &place->second;
  }
  return nullptr;
}

}  // namespace sluice::server
