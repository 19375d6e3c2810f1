#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/load_report.h"
#include "cli/remote_flags.h"

namespace sluice::cli {

// What `sluice bench` was asked for. Value.
struct LoadJob {
  RemoteFlags remote;
  std::string model_name;  // empty: the one served
  int streams = 64;        // calls in flight, always; not with `rate`
  double rate = 0;         // calls a second, Poisson arrivals; 0: closed loop of `streams`
  int requests = 0;        // measured calls; 0: 4 for each stream
  int warmup = -1;         // calls before them, not counted; -1: one for each stream, at most 64
  int prompt_tokens = 128;
  int output_tokens = 128;
  float temperature = 0;
  uint64_t seed = 1;    // of prompts and arrivals
  int connections = 0;  // 0: one for each 32 streams, 1 to 8
  std::chrono::milliseconds timeout = std::chrono::minutes(10);  // of a call
};

// Facts of the server that belong beside the figures.
struct ServerFacts {
  std::string model;
  std::string build;
  std::string backend;
  std::string numerics;
  int32_t vocab_size = 0;
};

// Many Generate calls at once on the few threads of gRPC's callback API: random prompts of token
// ids, end-of-text ignored, token ids back. A prompt depends on the seed and the call's number
// alone. Thread-safe: Cancel may come from anywhere.
class LoadClient {
 public:
  explicit LoadClient(const LoadJob& job);
  ~LoadClient();  // no call may be in flight

  // Asks the server what it serves.
  absl::StatusOr<ServerFacts> Connect();
  struct Outcome {
    std::vector<CallRecord> calls;
    double seconds = 0;
  };
  // Makes `requests` calls and returns when all have ended. After Connect.
  Outcome Run(int requests);
  // Cancels what is in flight; Run starts no more calls.
  void Cancel();

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace sluice::cli
