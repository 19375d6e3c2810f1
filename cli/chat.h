#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/remote_flags.h"

#include "engine/engine.h"
#include "engine/sampling/sampling_params.h"

namespace sluice::cli {

// What `sluice chat` was asked for. One of `model` and `remote.server` is not empty.
struct ChatJob {
  std::string model;       // local: GGUF file or directory
  RemoteFlags remote;      // its server may be empty
  std::string model_name;  // remote: which model; empty: the one served
  std::string system;      // prompt; empty: none
  engine::SamplingParams sampling;
  std::optional<uint64_t> seed;
  int32_t max_tokens = 0;  // of a reply; 0: what the context leaves
  engine::EngineOptions engine;
};

struct ChatTurn {
  std::string role;
  std::string content;
};

// Where the replies of a chat come from. One reply at a time.
class ChatBackend {
 public:
  virtual ~ChatBackend() = default;
  // Has the conversation continued and hands the reply over as it comes; false from `take` cancels.
  // The status is the generation's, CANCELLED after Cancel.
  virtual absl::Status Reply(const std::vector<ChatTurn>& turns,
                             const std::function<bool(const engine::TokenChunk&)>& take) = 0;
  // Ends the reply that is being made, if there is one. Thread-safe.
  virtual void Cancel() = 0;
};

// Loads the model. FAILED_PRECONDITION when it has no usable chat template.
absl::StatusOr<std::unique_ptr<ChatBackend>> OpenLocalChat(const ChatJob& job);
// Asks the server for the model, so that a wrong address is known at once.
absl::StatusOr<std::unique_ptr<ChatBackend>> OpenRemoteChat(const ChatJob& job);

}  // namespace sluice::cli
