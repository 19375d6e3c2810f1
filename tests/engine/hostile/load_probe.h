#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "engine/engine.h"

namespace sluice::testing {

// What a load came to, and what it cost.
struct LoadOutcome {
  absl::Status status;
  std::vector<engine::TokenId> tokens;  // of one greedy request, when the model loaded
  std::vector<std::string> warnings;
  double cpu_seconds = 0;
  int64_t peak_bytes = 0;  // resident memory above what was resident before
};

// Small pools: what a hostile file makes the loader do must not drown in them.
engine::EngineOptions ProbeOptions();

// Loads as the server does and, when that succeeds, answers a greedy request of 8 tokens.
LoadOutcome LoadAndServe(const std::string& path,
                         const std::function<void(const engine::LoadProgress&)>& progress = {});
// The answer alone. `status` is the request's.
struct Answer {
  absl::Status status;
  std::vector<engine::TokenId> tokens;
};
Answer Ask(engine::Dispatcher& dispatcher, std::vector<engine::TokenId> prompt);

// Processor time of all threads so far: another process may hold the cores.
double CpuSeconds();

// What a load may cost: 1 s and 64 MiB; more under a sanitizer, whose shadow memory and checks are
// not the server's.
double MostSeconds();
int64_t MostBytes();

}  // namespace sluice::testing
