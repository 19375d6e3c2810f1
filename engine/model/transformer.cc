#include "engine/model/transformer.h"

#include <algorithm>
#include <vector>

#include "engine/base/status.h"

namespace sluice::engine {
namespace {

absl::Status AttentionBlock(kernels::Exec& exec, const ModelConfig& config,
                            const LayerWeights& layer, const LayerTraits& traits,
                            const kernels::BatchView& batch, const kernels::KvLayer& kv,
                            kernels::MatrixF32 residual, Activations& activations) {
  const kernels::NormQkvRopeStoreArgs args = {
      .norm = {.weight = layer.attention_norm, .epsilon = config.norm_epsilon},
      .q = &layer.q,
      .k = &layer.k,
      .v = &layer.v,
      .q_head_norm = {.weight = layer.q_head_norm, .epsilon = config.norm_epsilon},
      .k_head_norm = {.weight = layer.k_head_norm, .epsilon = config.norm_epsilon},
      .rope = config.rope(traits.rope),
      .rope_index = std::max(traits.rope, 0),
      .head_size = config.head_size};
  const kernels::MatrixF32 q = activations.q.Rows(batch.num_tokens);
  RETURN_IF_ERROR(kernels::NormQkvRopeStore(
      exec, args, {residual.values, residual.rows, residual.cols}, batch, kv, q));
  RETURN_IF_ERROR(kernels::PagedAttention(exec, {.scale = config.attention_scale},
                                          {q.values, q.rows, q.cols}, batch, kv,
                                          activations.attention));
  return kernels::MatMulAddResidual(exec, {.linear = &layer.attention_output},
                                    activations.attention, batch, residual);
}

absl::Status FfnBlock(kernels::Exec& exec, const ModelConfig& config, const LayerWeights& layer,
                      const kernels::BatchView& batch, kernels::MatrixF32 residual,
                      Activations& activations) {
  const kernels::NormGateUpArgs args = {
      .norm = {.weight = layer.ffn_norm, .epsilon = config.norm_epsilon},
      .gate = &layer.gate,
      .up = &layer.up,
      .activation = kernels::GateActivation::kSilu};
  RETURN_IF_ERROR(kernels::NormGateUpSwiglu(
      exec, args, {residual.values, residual.rows, residual.cols}, batch, activations.ffn));
  return kernels::MatMulAddResidual(exec, {.linear = &layer.down}, activations.ffn, batch,
                                    residual);
}

}  // namespace

absl::Status Forward(kernels::Exec& exec, const ModelConfig& config, const Weights& weights,
                     const kernels::BatchView& batch, std::span<const kernels::KvLayer> kv,
                     Activations& activations) {
  const kernels::MatrixF32 residual = activations.residual.Rows(batch.num_tokens);
  exec.set_layer(-1);
  std::vector<kernels::Rope> ropes;
  for (size_t i = 0; i < config.ropes.size(); ++i) {
    ropes.push_back(config.rope(static_cast<int>(i)));
  }
  RETURN_IF_ERROR(kernels::EmbedTokens(exec, weights.token_embedding(), /*scale=*/1.0f, ropes,
                                       batch, residual));
  for (int i = 0; i < config.num_layers; ++i) {
    const LayerWeights& layer = weights.layers()[static_cast<size_t>(i)];
    exec.set_layer(i);
    const LayerTraits& traits = config.layers[static_cast<size_t>(i)];
    RETURN_IF_ERROR(AttentionBlock(exec, config, layer, traits, batch, kv[static_cast<size_t>(i)],
                                   residual, activations));
    RETURN_IF_ERROR(FfnBlock(exec, config, layer, batch, residual, activations));
  }
  exec.set_layer(-1);
  if (batch.num_logit_rows == 0) return absl::OkStatus();
  const kernels::NormLmHeadArgs args = {
      .norm = {.weight = weights.output_norm(), .epsilon = config.norm_epsilon},
      .head = &weights.head()};
  return kernels::NormLmHead(exec, args, {residual.values, residual.rows, residual.cols}, batch, 0,
                             activations.logits.Rows(batch.num_logit_rows));
}

}  // namespace sluice::engine
