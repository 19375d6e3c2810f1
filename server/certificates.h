#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/mutex.h"

namespace sluice::server {

// What a server proves itself with and checks its clients by, in PEM. Value.
struct CertificateSet {
  std::string chain;      // the server's certificate first, then those that issued it
  std::string key;        // its private key, not encrypted
  std::string client_ca;  // who may issue certificates of clients; empty: none is asked for
  int64_t not_after = 0;  // end of the server's certificate, seconds since 1970

  // INVALID_ARGUMENT unless key and certificate belong together, the certificate is valid now, and
  // each of the chain is issued by the next. `client_ca` may be empty.
  static absl::StatusOr<CertificateSet> Check(std::string chain, std::string key,
                                              std::string client_ca);
};

// The set in force. A new one is taken by the handshakes that begin after it. Thread-safe.
class CertificateStore {
 public:
  void Replace(CertificateSet set);
  // Null before the first.
  std::shared_ptr<const CertificateSet> current() const;

 private:
  mutable engine::Mutex mutex_;
  std::shared_ptr<const CertificateSet> current_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sluice::server
