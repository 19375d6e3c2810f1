#include "server/library_log.h"

#include <grpc/support/log.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <string_view>

namespace sluice::server {
namespace {

struct Handshakes {
  std::atomic<uint64_t> failed{0};
  std::atomic<int64_t> expected{0};
};

Handshakes& HandshakesOfProcess() {
  static Handshakes handshakes;
  return handshakes;
}

void CountFailedHandshake() {
  Handshakes& handshakes = HandshakesOfProcess();
  int64_t expected = handshakes.expected.load();
  while (expected > 0) {
    if (handshakes.expected.compare_exchange_weak(expected, expected - 1)) return;
  }
  handshakes.failed.fetch_add(1);
}

void TakeLine(gpr_log_func_args* line) {
  // Of chttp2_server.cc, for whatever ended a handshake: TLS, its time, or the client.
  if (std::string_view(line->message).starts_with("Handshaking failed: ")) CountFailedHandshake();
  spdlog::debug("grpc {}:{}: {}", line->file, line->line, line->message);
}

}  // namespace

void LibraryLog::Take() {
  gpr_set_log_function(TakeLine);
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_DEBUG);  // that line's
}

uint64_t LibraryLog::failed_handshakes() { return HandshakesOfProcess().failed.load(); }

void LibraryLog::ExpectFailedHandshake() { HandshakesOfProcess().expected.fetch_add(1); }

}  // namespace sluice::server
