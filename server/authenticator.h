#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/mutex.h"
#include "server/credentials.h"

namespace sluice::server {

// What a call brings to say whose it is. Value.
struct Claims {
  std::vector<std::string> authorization;  // one a header
  bool has_certificate = false;            // that the port has verified
  std::vector<std::string> names;          // subject alternative names of that
};

// Says who makes a call and whether they may. Without credentials to check against, everybody is
// the default tenant and may do everything but administer. Thread-safe.
class Authenticator {
 public:
  enum class Verdict : uint8_t { kAllowed, kUnauthenticated, kDenied };
  // What a call is for, by its method.
  enum class Purpose : uint8_t { kHealth, kInference, kAdmin, kOther };

  // All refusals of a kind read the same: they must not tell what was right.
  static constexpr char kUnauthenticatedText[] = "valid credentials are required";
  static constexpr char kDeniedText[] = "the credentials do not allow this call";

  // "/sluice.v1.Inference/Generate".
  static Purpose PurposeOf(std::string_view path);

  // From now on calls are checked against `table`.
  void Replace(std::shared_ptr<const CredentialTable> table);

  // Who calls. A token counts more than a certificate: one that is wrong is not made up for.
  Verdict Identify(const Claims& claims, Identity* identity) const;
  // The same, and whether they may do it; refusals are counted.
  Verdict Judge(const Claims& claims, Purpose purpose, Identity* identity);

  struct Counts {
    uint64_t unauthenticated = 0;
    uint64_t denied = 0;
  };
  Counts Read() const { return {unauthenticated_.load(), denied_.load()}; }

 private:
  std::shared_ptr<const CredentialTable> table() const;

  mutable engine::Mutex mutex_;
  std::shared_ptr<const CredentialTable> table_ ABSL_GUARDED_BY(mutex_);
  std::atomic<uint64_t> unauthenticated_{0};
  std::atomic<uint64_t> denied_{0};
};

}  // namespace sluice::server
