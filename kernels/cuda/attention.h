#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/linear.h"
#include "kernels/ops.h"

namespace sluice::kernels::cuda {

struct AttentionArgs {
  const float* q = nullptr;  // [T, H D]
  int32_t num_heads = 0;
  PagedAttentionArgs op;
  KvLayer kv;
  const AttentionItem* items = nullptr;
  const int32_t* num_items = nullptr;  // on the device: a graph's launches serve any number
  int32_t max_parts = 0;               // parts of items that there may be; 0: none
  int32_t num_multiprocessors = 0;
  bool has_wgmma = false;  // LinearDevice's
  const AttentionBlock* blocks = nullptr;
  int32_t num_blocks = 0;
  int32_t block_queries = 0;
  int32_t num_tokens = 0;
  const int32_t* positions = nullptr;
  const int32_t* pages = nullptr;
  const int32_t* slots = nullptr;  // [T], see AttentionPlan
  float* partials = nullptr;       // [slot][H][2 + D]: maximum, sum, outcome of the items
  float* values = nullptr;  // [T, H D] f32, of the blocks; LaunchAttentionRows fills in the rest
  OperandRows out;
};

// Grouped-query attention over pages (kernels/ops.h) by the step's items into `partials` and by its
// blocks into `values`. Each tile of 64 keys is a part of its own; parts merge ascending into
// splits of 256 positions, splits into the whole (attention_merge.cuh). The same bits whatever the
// plan.
//
// A cache of f16 with D a multiple of 8 is read by tensor cores (attention_tile.cuh). For others
// scores and outcomes are f32 FMA chains over ascending d and keys.
absl::Status LaunchAttention(const AttentionArgs& args, cudaStream_t stream);
// Merges the splits and makes operand rows of the outcome.
absl::Status LaunchAttentionRows(const AttentionArgs& args, cudaStream_t stream);

// Heads of more values are nobody's.
inline constexpr int64_t kMaxHeadSize = 256;

// What LaunchAttention chooses from.
absl::Status LaunchSplitKv(const AttentionArgs& args, cudaStream_t stream);      // items, f16
absl::Status LaunchRagged(const AttentionArgs& args, cudaStream_t stream);       // blocks, f16
absl::Status LaunchPrompt(const AttentionArgs& args, cudaStream_t stream);       // the same on 9.0
bool HasPromptKernel(const AttentionArgs& args);                                 // for these
absl::Status LaunchChainItems(const AttentionArgs& args, cudaStream_t stream);   // items, any type
absl::Status LaunchChainBlocks(const AttentionArgs& args, cudaStream_t stream);  // blocks, any type

}  // namespace sluice::kernels::cuda
