#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

#include "engine/model/model_config.h"
#include "kernels/ops.h"

namespace sluice::engine {

// The arrays that flow between the ops of one forward pass, allocated once for the largest step.
// Owned by a DeviceRunner; engine thread only.
struct Activations {
  static absl::StatusOr<Activations> Allocate(const ModelConfig& config, kernels::Backend backend,
                                              int64_t max_tokens, int64_t max_logit_rows);

  kernels::MatrixF32 residual;    // [T_max, E]
  kernels::MatrixF32 q;           // [T_max, H*D]
  kernels::Activation attention;  // [T_max, H*D]
  kernels::Activation ffn;        // [T_max, F]
  kernels::MatrixF32 logits;      // [R_max, V]

 private:
  kernels::Buffer storage_;
};

}  // namespace sluice::engine
