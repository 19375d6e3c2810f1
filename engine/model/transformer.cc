#include "engine/model/transformer.h"

#include <algorithm>
#include <array>

#include "engine/base/status.h"

namespace sluice::engine {
namespace {

absl::Status AttentionBlock(kernels::Exec& exec, const ModelConfig& config,
                            const LayerWeights& layer, const LayerTraits& traits,
                            const kernels::BatchView& batch, const kernels::KvLayer& kv,
                            kernels::MatrixF32 residual, Activations& activations) {
  const kernels::NormQkvRopeStoreArgs args = {.norm = layer.attention_norm,
                                              .q = &layer.q,
                                              .k = &layer.k,
                                              .v = &layer.v,
                                              .q_head_norm = layer.q_head_norm,
                                              .k_head_norm = layer.k_head_norm,
                                              .rope = config.rope(traits.rope),
                                              .rope_index = std::max(traits.rope, 0),
                                              .head_size = config.head_size};
  const kernels::MatrixF32 q = activations.q.Rows(batch.num_tokens);
  RETURN_IF_ERROR(kernels::NormQkvRopeStore(
      exec, args, {residual.values, residual.rows, residual.cols}, batch, kv, q));
  const kernels::PagedAttentionArgs attention = {.scale = config.attention_scale,
                                                 .softcap = config.attention_softcap,
                                                 .window = traits.window};
  RETURN_IF_ERROR(kernels::PagedAttention(exec, attention, {q.values, q.rows, q.cols}, batch, kv,
                                          activations.attention));
  return kernels::MatMulAddResidual(exec,
                                    {.linear = &layer.attention_output,
                                     .post_norm = layer.attention_post_norm,
                                     .scale = config.residual_scale},
                                    activations.attention, batch, residual);
}

absl::Status FfnBlock(kernels::Exec& exec, const ModelConfig& config, const LayerWeights& layer,
                      const kernels::BatchView& batch, kernels::MatrixF32 residual,
                      Activations& activations) {
  const kernels::NormGateUpArgs args = {.norm = layer.ffn_norm,
                                        .gate = config.has_ffn_gate ? &layer.gate : nullptr,
                                        .up = &layer.up,
                                        .activation = config.ffn_activation};
  RETURN_IF_ERROR(kernels::NormGateUpSwiglu(
      exec, args, {residual.values, residual.rows, residual.cols}, batch, activations.ffn));
  return kernels::MatMulAddResidual(
      exec,
      {.linear = &layer.down, .post_norm = layer.ffn_post_norm, .scale = config.residual_scale},
      activations.ffn, batch, residual);
}

}  // namespace

absl::Status Forward(kernels::Exec& exec, const ModelConfig& config, const Weights& weights,
                     const kernels::BatchView& batch, std::span<const kernels::KvLayer> kv,
                     Activations& activations) {
  const kernels::MatrixF32 residual = activations.residual.Rows(batch.num_tokens);
  exec.set_layer(-1);
  std::array<kernels::Rope, kernels::kMaxRopes> ropes;
  for (size_t i = 0; i < config.ropes.size(); ++i) ropes[i] = config.rope(static_cast<int>(i));
  RETURN_IF_ERROR(kernels::EmbedTokens(exec, weights.token_embedding(), config.embedding_scale,
                                       std::span(ropes).first(config.ropes.size()), batch,
                                       residual));
  for (int i = 0; i < config.num_layers; ++i) {
    const LayerWeights& layer = weights.layers()[static_cast<size_t>(i)];
    const LayerTraits& traits = config.layers[static_cast<size_t>(i)];
    exec.set_layer(i);
    RETURN_IF_ERROR(AttentionBlock(exec, config, layer, traits, batch, kv[static_cast<size_t>(i)],
                                   residual, activations));
    RETURN_IF_ERROR(FfnBlock(exec, config, layer, batch, residual, activations));
  }
  exec.set_layer(-1);
  if (batch.num_logit_rows == 0) return absl::OkStatus();
  const kernels::NormLmHeadArgs args = {.norm = weights.output_norm(),
                                        .head = &weights.head(),
                                        .scale = config.logit_scale,
                                        .softcap = config.logit_softcap};
  return kernels::NormLmHead(exec, args, {residual.values, residual.rows, residual.cols}, batch, 0,
                             activations.logits.Rows(batch.num_logit_rows));
}

}  // namespace sluice::engine
