#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/remote_flags.h"
#include "cli/signals.h"
#include "cli/transcript.h"

#include "engine/engine.h"
#include "engine/sampling/sampling_params.h"

namespace sluice::cli {

// What `sluice generate` was asked for. Exactly one of `text` and `token_ids` is set, and one of
// `model` and `remote.server` not empty.
struct GenerateJob {
  std::string model;       // local: GGUF file or directory
  RemoteFlags remote;      // its server may be empty, or with `resume` a list: "A:P,B:P"
  bool resume = false;     // remote: go on at the next server when the stream breaks
  std::string model_name;  // remote: which model; empty: the one served
  std::optional<std::string> text;
  std::optional<std::vector<engine::TokenId>> token_ids;
  bool add_special = true;
  bool parse_special = true;
  engine::SamplingParams sampling;
  std::optional<uint64_t> seed;
  engine::StoppingParams stopping;  // max_tokens 0: what the context leaves
  engine::OutputParams output;
  bool print_token_ids = false;
  engine::EngineOptions engine;  // local
};

struct GenerateOutcome {
  absl::Status status;  // of the generation
  std::string summary;  // empty when nothing was begun
};

// Generates with the engine in this process: the path of the server without gRPC. An error that
// keeps the generation from beginning is returned as the StatusOr's.
absl::StatusOr<GenerateOutcome> GenerateLocally(const GenerateJob& job, SignalWatcher& signals);
// Generates through a server.
absl::StatusOr<GenerateOutcome> GenerateRemotely(const GenerateJob& job, SignalWatcher& signals);

}  // namespace sluice::cli
