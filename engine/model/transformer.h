#pragma once

#include <span>

#include "absl/status/status.h"

#include "engine/model/activations.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/ops.h"

namespace sluice::engine {

// One forward pass of a decoder-only transformer over a ragged batch: embeddings, L layers of
// attention and gated FFN, and the logits of the batch's logit rows into activations.logits [R, V]
// (R at most its rows). K and V of the step's positions are written to their pages. The same
// function for every architecture and backend: variants are fields of ModelConfig.
absl::Status Forward(kernels::Exec& exec, const ModelConfig& config, const Weights& weights,
                     const kernels::BatchView& batch, std::span<const kernels::KvLayer> kv,
                     Activations& activations);

}  // namespace sluice::engine
