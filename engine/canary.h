#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/ids.h"
#include "engine/device_runner.h"

namespace sluice::engine {

// `count` token ids spread over a vocabulary, the same for equal arguments: input for checks that
// need no text.
std::vector<TokenId> CanaryTokens(int32_t vocab_size, int count);

// Runs tokens of one sequence through a DeviceRunner directly, without a scheduler: position by
// position in chunks of the caller's choice, from page 1 on. For checks that compare backends.
// Engine thread only.
class ForwardProbe {
 public:
  explicit ForwardProbe(DeviceRunner& runner) : runner_(runner) {}

  // Appends `tokens` at the next positions as one row; logits for all of them if `all_logits`, else
  // for the last one, are then in runner.logits(). INVALID_ARGUMENT when the pool of the runner is
  // too small.
  absl::Status Append(std::span<const TokenId> tokens, bool all_logits);
  // Forgets the sequence: the next Append begins at position 0.
  void Restart() { next_position_ = 0; }

 private:
  DeviceRunner& runner_;
  int32_t next_position_ = 0;
};

}  // namespace sluice::engine
