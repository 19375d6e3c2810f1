#pragma once

// The operations of kernels/ops.h done naively, with double sums over weights dequantised to f32:
// the strict path that the others are compared with. Shapes are checked by kernels/ops.cc. Slow.

#include <cmath>
#include <limits>
#include <memory>
#include <span>

#include "absl/status/statusor.h"

#include "kernels/ops.h"

namespace sluice::kernels::ref {

// Reserves what the ops below need inside.
absl::StatusOr<std::unique_ptr<Exec::Workspace>> MakeWorkspace(const WorkspaceShape& shape,
                                                               const Exec& exec);

void EmbedTokens(Exec& exec, const PackedWeight& table, float scale, std::span<const Rope> ropes,
                 const BatchView& batch, MatrixF32 residual);
void NormQkvRopeStore(Exec& exec, const NormQkvRopeStoreArgs& args, ConstMatrixF32 residual,
                      const BatchView& batch, const KvLayer& kv, MatrixF32 q_out);
void PagedAttention(Exec& exec, const PagedAttentionArgs& args, ConstMatrixF32 q,
                    const BatchView& batch, const KvLayer& kv, Activation& out);
void MatMulAddResidual(Exec& exec, const MatMulAddResidualArgs& args, const Activation& input,
                       const BatchView& batch, MatrixF32 residual);
void NormGateUpSwiglu(Exec& exec, const NormGateUpArgs& args, ConstMatrixF32 residual,
                      const BatchView& batch, Activation& out);
void NormLmHead(Exec& exec, const NormLmHeadArgs& args, ConstMatrixF32 residual,
                const BatchView& batch, int64_t first, MatrixF32 logits);
void Sample(Exec& exec, ConstMatrixF32 logits, const SampleArgs& args, SamplerSlots::Table& table,
            std::span<SampledToken> out);

// softcap * tanh(x / softcap), x itself for a cap of 0. NaN for x that is not finite: the tanh of
// an infinity would hide it.
inline double Softcap(double x, double softcap) {
  if (softcap == 0.0) return x;
  if (!std::isfinite(x)) return std::numeric_limits<double>::quiet_NaN();
  return softcap * std::tanh(x / softcap);
}

// The layout of weights; see kernels/ops.h for the contracts.
bool SupportsWeight(DType type);
int64_t PackedBytes(DType type, int64_t rows, int64_t cols);
void PackWeightRows(PackedWeight& weight, int64_t first_row, int64_t num_rows,
                    const std::byte* stored);
void UnpackWeightRow(const PackedWeight& weight, int64_t row, float* out);

}  // namespace sluice::kernels::ref
