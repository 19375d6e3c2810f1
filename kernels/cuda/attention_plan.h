#pragma once

// How a step's attention is cut into pieces of work. Pure functions of the step; no CUDA in here.

#include <cstdint>
#include <span>

namespace sluice::kernels::cuda {

inline constexpr int kTileKeys = 64;     // keys between two rescalings
inline constexpr int kSplitKeys = 256;   // keys between two flushes
inline constexpr int kItemQueries = 16;  // of an item, at most

// Some splits of a few consecutive tokens of one row, for every KV head and every group of 16 heads
// that share one; each split gives a partial outcome of its own.
struct AttentionItem {
  int32_t page_begin = 0;  // of the row, in the step's page tables
  int32_t first_token = 0;
  int32_t num_tokens = 0;
  int32_t first_position = 0;  // of first_token
  int32_t first_split = 0;
  int32_t num_splits = 0;
  int32_t first_slot = 0;  // of partial outcomes: split s of token i has first_slot + i slots + s
  int32_t slots = 0;       // of a token
};
static_assert(sizeof(AttentionItem) == 32);

// Consecutive queries of one row, (token, head) pairs for each KV head, that go through all of its
// splits.
struct AttentionBlock {
  int32_t page_begin = 0;
  int32_t first_token = 0;
  int32_t first_position = 0;  // of first_token
  int32_t first_query = 0;     // of first_token's heads
  int32_t num_queries = 0;
};

// What a plan depends on besides the step.
struct AttentionShape {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_size = 0;
  int64_t num_multiprocessors = 0;
  int64_t max_tokens = 0;
  int64_t max_rows = 0;
  int64_t max_slots = 0;  // partial outcomes that there is room for

  int ratio() const { return static_cast<int>(num_heads / num_kv_heads); }
  // Groups of up to 16 of the heads that share a KV head.
  int head_groups() const { return (ratio() + kItemQueries - 1) / kItemQueries; }
  // Launched for each item: one a KV head and group.
  int64_t item_parts() const { return num_kv_heads * head_groups(); }
};

// Entries that the arrays of a plan may take.
int64_t MaxItems(const AttentionShape& shape);
int64_t MaxBlocks(const AttentionShape& shape);

// Where a plan goes: memory of the caller.
struct AttentionPlan {
  AttentionItem* items = nullptr;    // [MaxItems]
  AttentionBlock* blocks = nullptr;  // [MaxBlocks]
  int32_t* slots = nullptr;          // [T], first partial outcome of each token; -1: none
  int32_t num_items = 0;
  int32_t num_blocks = 0;
  int32_t block_queries = 0;  // of a block, at most: 64 or 128
};

// Rows of few queries become items, so that their splits spread over the card; the others blocks,
// as does what finds no room for its partial outcomes. Blocks come in order of falling cost.
// row_begins [S + 1], positions [T], page_begins [S + 1] of the step.
void PlanAttention(const AttentionShape& shape, std::span<const int32_t> row_begins,
                   const int32_t* positions, const int32_t* page_begins, AttentionPlan& plan);

}  // namespace sluice::kernels::cuda
