#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace sluice::testing {

// Everything that came back for one sequence.
struct Collected {
  std::vector<engine::TokenId> tokens;
  std::string text;
  std::vector<engine::TokenLogprobs> logprobs;
  std::vector<engine::TokenLogprobs> prompt_logprobs;
  engine::FinishReason reason = engine::FinishReason::kNone;
  int preemptions = 0;
  absl::Status status;
  std::string error_reason;  // of the request

  // Equal tokens and text, logprobs equal to the bit.
  bool SameOutput(const Collected& other) const;
};

// Sends all requests at once (handles are set here), waits for all ends; result[i][index]. Lane 0
// of a one-lane mailbox. Aborts after `timeout_seconds` without an end: a test must not hang.
std::vector<std::vector<Collected>> RunAll(engine::Dispatcher& dispatcher,
                                           std::vector<engine::Request> requests,
                                           int timeout_seconds = 120);

}  // namespace sluice::testing
