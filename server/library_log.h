#pragma once

#include <cstdint>

namespace sluice::server {

// What gRPC writes to its log. It has one for the process, so this is one too. Lines go to ours for
// those who debug; some are the only sign of what happened, and those are counted. Thread-safe.
class LibraryLog {
 public:
  // Takes the lines from now on. Idempotent.
  static void Take();
  // TLS handshakes of this process's servers that failed, but those that were expected to.
  static uint64_t failed_handshakes();
  // The next one to fail is our own, and does not count: a probe that speaks no TLS.
  static void ExpectFailedHandshake();
};

}  // namespace sluice::server
