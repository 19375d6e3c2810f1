#pragma once

// Kernels that work on a token or two a block: embeddings, normalised and scaled operand rows of
// the products, rotation and the KV cache.

#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"

#include "kernels/cuda/linear.h"
#include "kernels/cuda/packed_weight.h"
#include "kernels/ops.h"

namespace sluice::kernels::cuda {

// residual[t] = scale * row of the table, in f32 by the format's definition (F32 and BF16 tables
// as packed); and cos and sin of every rope's angles at the step's positions, [rope][T][half].
struct EmbedArgs {
  PackedView table;
  float scale = 1.0f;
  const int32_t* tokens = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* previous_tokens = nullptr;
  int32_t num_tokens = 0;
  float* residual = nullptr;  // [T, E]
  int32_t num_ropes = 0;
  struct RopeTable {
    const float* inverse_frequencies = nullptr;  // device, [half]
    int32_t half = 0;
    float magnitude = 1.0f;
    float2* rotations = nullptr;  // [T, half] (cos, sin)
  } ropes[kMaxRopes];
};
absl::Status LaunchEmbed(const EmbedArgs& args, cudaStream_t stream);

// out[r] = packed row `row` in f32, as LaunchEmbed reads it (tests).
absl::Status LaunchUnpackRow(const PackedView& weight, int64_t row, float* out,
                             cudaStream_t stream);

// A norm as kernels see it: device addresses.
struct DeviceNorm {
  const float* weight = nullptr;
  const float* bias = nullptr;
  float epsilon = 0.0f;
  NormKind kind = NormKind::kRms;
};

// Operand rows of norm(residual[index]), or of the rows as they are when norm has no weight.
struct NormRowsArgs {
  const float* source = nullptr;     // [.., cols]
  const int32_t* indices = nullptr;  // row of source for each outcome, or null: in order
  int32_t num_rows = 0;
  int32_t cols = 0;
  DeviceNorm norm;
  OperandRows out;
};
absl::Status LaunchNormRows(const NormRowsArgs& args, cudaStream_t stream);

// Operand rows of act(gate) * up, or of act(up) when gate is null; `values` receives them in f32.
struct GateRowsArgs {
  const float* gate = nullptr;  // [T, F]
  const float* up = nullptr;    // [T, F]
  int32_t num_rows = 0;
  int32_t cols = 0;
  GateActivation activation = GateActivation::kSilu;
  float* values = nullptr;
  OperandRows out;
};
absl::Status LaunchGateRows(const GateRowsArgs& args, cudaStream_t stream);

// residual[t] += scale * norm(source[t]).
struct AddNormArgs {
  const float* source = nullptr;  // [T, cols]
  float* residual = nullptr;      // [T, cols]
  int32_t num_rows = 0;
  int32_t cols = 0;
  float scale = 1.0f;
  DeviceNorm norm;
};
absl::Status LaunchAddNorm(const AddNormArgs& args, cudaStream_t stream);

// Per-head norms, rotation, and K and V into their pages. qkv [T, (H + 2 G) D].
struct RopeStoreArgs {
  const float* qkv = nullptr;
  int32_t num_tokens = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_size = 0;
  DeviceNorm q_norm;
  DeviceNorm k_norm;
  RopeStyle style = RopeStyle::kHalfSplit;
  int32_t half = 0;                   // pairs rotated of each head
  const float2* rotations = nullptr;  // [T, half]
  const int32_t* positions = nullptr;
  const int32_t* token_rows = nullptr;   // [T] row of each token
  const int32_t* page_begins = nullptr;  // [S + 1]
  const int32_t* pages = nullptr;
  KvLayer kv;
  float* q_out = nullptr;  // [T, H D]
};
absl::Status LaunchRopeStore(const RopeStoreArgs& args, cudaStream_t stream);

// logits = softcap * tanh(scale * logits / softcap), n values; NaN where they are not finite.
absl::Status LaunchCapLogits(float* logits, int64_t n, float scale, float softcap,
                             cudaStream_t stream);

}  // namespace sluice::kernels::cuda
