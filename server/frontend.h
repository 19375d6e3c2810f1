#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>

#include "server/access_log.h"
#include "server/admission.h"
#include "server/authenticator.h"
#include "server/call_registry.h"
#include "server/certificates.h"
#include "server/connection_table.h"
#include "server/counters.h"
#include "server/reloader.h"
#include "server/rpc_error.h"
#include "server/served_model.h"
#include "server/server.h"
#include "server/text_pool.h"

namespace sluice::server {

// Seeds for requests that bring none: a random start and a counter, mixed, so that no two requests
// of a process share one. Thread-safe.
class SeedSource {
 public:
  SeedSource()
      : next_((static_cast<uint64_t>(std::random_device{}()) << 32) | std::random_device{}()) {}
  uint64_t Next() {
    // splitmix64 (Steele, Lea, Flood 2014).
    uint64_t z = next_.fetch_add(0x9e3779b97f4a7c15, std::memory_order_relaxed);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

 private:
  std::atomic<uint64_t> next_;
};

// What the methods share. Owned by the server, outlives every call. Thread-safe.
struct Frontend {
  Frontend(const ServerOptions& server_options, int num_text_threads)
      : options(server_options),
        calls(server_options.max_open_streams, kMaxCallsOfPeer),
        access_log(server_options.json_logs),
        text_pool(num_text_threads),
        admission({server_options.max_queue_tokens,
                   static_cast<int64_t>(server_options.max_queue_bytes)}) {}

  // Above the streams that a connection may have at once, because a call keeps its place for a
  // moment after its stream has ended.
  static constexpr int kMaxCallsOfPeer = 512;
  // Texts above this are tokenised off gRPC's threads, and bodies above that parsed off them.
  static constexpr size_t kInlineTextBytes = 4096;
  static constexpr size_t kInlineBodyBytes = 64 * 1024;

  // What a call is told when the text pool does not take its job.
  RpcError NotTaken(TextPool::Refusal refusal) const {
    if (refusal == TextPool::Refusal::kStopped) return Draining();
    return QueueFull("too many texts wait to be tokenised", admission.RetryDelay());
  }

  const ServerOptions options;
  const engine::Time started = std::chrono::steady_clock::now();
  CallRegistry calls;
  Counters counters;
  AccessLog access_log;
  SeedSource seeds;
  TextPool text_pool;
  Admission admission;
  Authenticator authenticator;
  CertificateStore certificates;                   // empty without TLS
  std::shared_ptr<ConnectionTable> connections;    // of the service; set before it takes any
  std::atomic<const ServedModel*> model{nullptr};  // null while loading
  std::atomic<bool> draining{false};               // health is NOT_SERVING
  std::atomic<bool> refusing{false};               // new Generate calls get UNAVAILABLE
  std::atomic<int64_t> paused_calls{0};            // their readers have stopped
  Reloader reloader;                               // ends first: it sets what is above
};

}  // namespace sluice::server
