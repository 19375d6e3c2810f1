#include "server/authenticator.h"

#include <algorithm>
#include <cctype>
#include <utility>

namespace sluice::server {
namespace {

// The token of "Bearer TOKEN" (RFC 6750; the scheme in any case); empty when it is something else.
std::string_view BearerToken(std::string_view header) {
  constexpr std::string_view kScheme = "bearer ";
  if (header.size() <= kScheme.size()) return {};
  for (size_t i = 0; i < kScheme.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(header[i])) != kScheme[i]) return {};
  }
  const std::string_view token = header.substr(kScheme.size());
  const bool plain = std::all_of(token.begin(), token.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("-._~+/=").find(c) != std::string_view::npos;
  });
  return plain ? token : std::string_view();
}

}  // namespace

Authenticator::Purpose Authenticator::PurposeOf(std::string_view path) {
  if (path.starts_with("/grpc.health.v1.Health/")) return Purpose::kHealth;
  if (path.starts_with("/sluice.v1.Inference/")) return Purpose::kInference;
  if (path.starts_with("/sluice.v1.Admin/")) return Purpose::kAdmin;
  // Shows every connection and its peers.
  if (path.starts_with("/grpc.channelz.v1.Channelz/")) return Purpose::kAdmin;
  return Purpose::kOther;
}

void Authenticator::Replace(std::shared_ptr<const CredentialTable> table) {
  engine::MutexLock lock(mutex_);
  table_ = std::move(table);
}

std::shared_ptr<const CredentialTable> Authenticator::table() const {
  engine::MutexLock lock(mutex_);
  return table_;
}

Authenticator::Verdict Authenticator::Identify(const Claims& claims, Identity* identity) const {
  const auto known = table();
  if (known == nullptr) {
    *identity = {kDefaultTenant, {.inference = true, .admin = false}};
    return Verdict::kAllowed;
  }
  const Identity* found = nullptr;
  if (!claims.authorization.empty()) {
    const std::string_view token =
        claims.authorization.size() == 1 ? BearerToken(claims.authorization.front()) : "";
    found = token.empty() ? nullptr : known->OfToken(token);
    if (found == nullptr) return Verdict::kUnauthenticated;
  } else if (claims.has_certificate) {
    found = known->OfCertificate(claims.names);
    if (found == nullptr) return Verdict::kDenied;
  } else {
    return Verdict::kUnauthenticated;
  }
  *identity = *found;
  return Verdict::kAllowed;
}

Authenticator::Verdict Authenticator::Judge(const Claims& claims, Purpose purpose,
                                            Identity* identity) {
  Verdict verdict = Identify(claims, identity);
  if (verdict == Verdict::kAllowed) {
    const Scopes& scopes = identity->scopes;
    const bool lacks = (purpose == Purpose::kInference && !scopes.inference) ||
                       (purpose == Purpose::kAdmin && !scopes.admin);
    if (lacks) verdict = Verdict::kDenied;
  }
  if (verdict == Verdict::kUnauthenticated) ++unauthenticated_;
  if (verdict == Verdict::kDenied) ++denied_;
  return verdict;
}

}  // namespace sluice::server
