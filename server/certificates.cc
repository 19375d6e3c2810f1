#include "server/certificates.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <ctime>
#include <utility>
#include <vector>

#include "engine/base/status.h"

namespace sluice::server {
namespace {

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

Owned<BIO> Reader(const std::string& pem) {
  return Owned<BIO>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// No terminal is asked for a password.
int NoPassword(char*, int, int, void*) { return -1; }

absl::StatusOr<std::vector<Owned<X509>>> ParseCertificates(const std::string& pem,
                                                           const char* what) {
  std::vector<Owned<X509>> certificates;
  const Owned<BIO> reader = Reader(pem);
  while (true) {
    Owned<X509> certificate(PEM_read_bio_X509(reader.get(), nullptr, NoPassword, nullptr));
    if (certificate == nullptr) break;
    certificates.push_back(std::move(certificate));
  }
  // The end of the text is the one error that is none.
  const bool ended = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (certificates.empty()) {
    return engine::InvalidArgument(std::string(what) + ": expected certificates in PEM");
  }
  if (!ended) {
    return engine::InvalidArgument(std::string(what) + ": certificate " +
                                   std::to_string(certificates.size() + 1) + " is broken");
  }
  return certificates;
}

int64_t SecondsOf(const ASN1_TIME* time) {
  tm parts{};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return 0;
  return timegm(&parts);
}

}  // namespace

absl::StatusOr<CertificateSet> CertificateSet::Check(std::string chain, std::string key,
                                                     std::string client_ca) {
  ASSIGN_OR_RETURN(const auto certificates, ParseCertificates(chain, "the certificate"));
  const Owned<BIO> reader = Reader(key);
  const Owned<EVP_PKEY> parsed_key(
      PEM_read_bio_PrivateKey(reader.get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (parsed_key == nullptr) {
    return engine::InvalidArgument("the key: expected a private key in PEM without a password");
  }
  X509* const own = certificates.front().get();
  const bool belongs = X509_check_private_key(own, parsed_key.get()) == 1;
  ERR_clear_error();
  if (!belongs) return engine::InvalidArgument("key and certificate do not belong together");
  for (size_t i = 0; i < certificates.size(); ++i) {
    const X509* one = certificates[i].get();
    const std::string which = "certificate " + std::to_string(i + 1) + " of the chain ";
    if (X509_cmp_current_time(X509_get0_notBefore(one)) >= 0) {
      return engine::InvalidArgument(which + "is not valid yet");
    }
    if (X509_cmp_current_time(X509_get0_notAfter(one)) <= 0) {
      return engine::InvalidArgument(which + "has expired");
    }
    if (i > 0 && X509_check_issued(certificates[i].get(), certificates[i - 1].get()) != X509_V_OK) {
      return engine::InvalidArgument(which + "did not issue the one before it");
    }
  }
  if (!client_ca.empty()) {
    RETURN_IF_ERROR(ParseCertificates(client_ca, "the client CA").status());
  }
  CertificateSet set;
  set.not_after = SecondsOf(X509_get0_notAfter(own));
  set.chain = std::move(chain);
  set.key = std::move(key);
  set.client_ca = std::move(client_ca);
  return set;
}

void CertificateStore::Replace(CertificateSet set) {
  auto next = std::make_shared<const CertificateSet>(std::move(set));
  engine::MutexLock lock(mutex_);
  current_ = std::move(next);
}

std::shared_ptr<const CertificateSet> CertificateStore::current() const {
  engine::MutexLock lock(mutex_);
  return current_;
}

}  // namespace sluice::server
