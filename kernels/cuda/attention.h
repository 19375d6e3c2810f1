#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"

#include "kernels/cuda/linear.h"
#include "kernels/ops.h"

namespace sluice::kernels::cuda {

inline constexpr int kTileKeys = 64;    // keys between two rescalings
inline constexpr int kSplitKeys = 256;  // keys between two flushes

// Consecutive tokens of one row whose queries one block handles; made by the host with the batch.
struct AttentionBlock {
  int32_t row = 0;
  int32_t first_token = 0;
  int32_t num_tokens = 0;  // 0: padding
};

// Queries, (token, head) pairs that share one KV head, of one block: eight for steps of single
// tokens, 32 for prompts.
inline constexpr int kFewQueries = 8;
inline constexpr int kManyQueries = 32;

// Heads of one KV head that a block takes at a time, and tokens.
inline int HeadsABlock(int heads_per_kv, int queries) {
  return heads_per_kv < queries ? heads_per_kv : queries;
}
inline int TokensABlock(int heads_per_kv, int queries) {
  return heads_per_kv < queries ? queries / heads_per_kv : 1;
}

struct AttentionArgs {
  const float* q = nullptr;  // [T, H D]
  int32_t num_heads = 0;
  PagedAttentionArgs op;
  KvLayer kv;
  const AttentionBlock* blocks = nullptr;
  int32_t num_blocks = 0;
  int32_t num_tokens = 0;
  const int32_t* positions = nullptr;
  const int32_t* page_begins = nullptr;
  const int32_t* pages = nullptr;
  int32_t queries = kFewQueries;
  // Splits that blocks of their own take; 1: a block goes through all of them.
  int32_t num_splits = 1;
  float* partials = nullptr;  // [T, H, num_splits, 2 + D]: maximum, sum, outcome; with several
  float* values = nullptr;    // [T, H D] f32
  OperandRows out;
};

// Grouped-query attention over pages (kernels/ops.h), into `values`, or `partials` when there are
// several splits. For every query: scores are FMA chains over ascending d; each tile of 64 keys is
// a part of its own, parts merge ascending into splits of 256 positions, splits into the whole. The
// same bits whatever the blocks.
absl::Status LaunchAttention(const AttentionArgs& args, cudaStream_t stream);
// Merges the splits and makes operand rows of the outcome.
absl::Status LaunchAttentionRows(const AttentionArgs& args, cudaStream_t stream);

}  // namespace sluice::kernels::cuda
