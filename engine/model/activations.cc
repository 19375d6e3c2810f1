#include "engine/model/activations.h"

#include <utility>

#include "engine/base/status.h"

namespace sluice::engine {

absl::StatusOr<Activations> Activations::Allocate(const ModelConfig& config,
                                                  kernels::Backend backend, int64_t max_tokens,
                                                  int64_t max_logit_rows) {
  const int64_t heads_width = int64_t{config.num_heads} * config.head_size;
  Activations activations;
  const int64_t residual_values = max_tokens * config.width;
  const int64_t q_values = max_tokens * heads_width;
  const int64_t logit_values = max_logit_rows * config.vocab_size;
  ASSIGN_OR_RETURN(
      activations.storage_,
      kernels::AllocateMemory(
          backend,
          sizeof(float) * static_cast<size_t>(residual_values + q_values + logit_values)));
  float* next = activations.storage_.as<float>();
  activations.residual = {next, max_tokens, config.width};
  activations.q = {next + residual_values, max_tokens, heads_width};
  activations.logits = {next + residual_values + q_values, max_logit_rows, config.vocab_size};
  ASSIGN_OR_RETURN(activations.attention,
                   kernels::AllocateActivation(backend, max_tokens, heads_width));
  ASSIGN_OR_RETURN(activations.ffn,
                   kernels::AllocateActivation(backend, max_tokens, config.ffn_width));
  return activations;
}

}  // namespace sluice::engine
