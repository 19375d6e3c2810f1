#pragma once

// One work item of paged attention and the functions that carry it out, one set for each
// instruction set. Plain values only: included from files compiled for different sets.

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace sluice::kernels::cpu {

inline constexpr int kTileKeys = 64;    // keys between two rescalings
inline constexpr int kSplitKeys = 256;  // keys between two flushes
inline constexpr int kTilePages = 4;

// Floats before o in a partial: m, l and padding that keeps o aligned.
inline constexpr int64_t kPartialHead = 16;

// More positions than any token has before it.
inline constexpr int64_t kNoWindow = int64_t{1} << 40;

// The first position that a token at `position` sees.
constexpr int64_t FirstKey(int64_t position, int64_t window) {
  return position < window ? 0 : position - window + 1;
}

// The queries of `num_tokens` consecutive tokens of one row and `num_heads` heads that share one KV
// head. Query i is token i / num_heads, head i % num_heads.
struct AttentionItem {
  const float* q = nullptr;  // first token's first head; tokens are token_stride apart, heads D
  float* out = nullptr;      // likewise
  int64_t token_stride = 0;
  int64_t num_tokens = 0;
  int64_t num_heads = 0;
  int64_t first_position = 0;
  int64_t head_size = 0;         // D
  int64_t padded_head_size = 0;  // D rounded up to 16
  float scale = 0.0f;
  float softcap = 0.0f;          // 0: none
  int64_t window = kNoWindow;    // positions that a token sees, itself included
  DType type = DType::kF16;      // of k and v
  const std::byte* k = nullptr;  // this KV head in page 0; pages are page_bytes apart
  const std::byte* v = nullptr;
  int64_t page_bytes = 0;          // K or V of all heads
  const int32_t* pages = nullptr;  // the row's page table
  float* work = nullptr;           // WorkFloats(D)
};

// Work memory of an item.
constexpr int64_t WorkFloats(int64_t max_queries, int64_t head_size, int64_t padded_head_size) {
  return max_queries * (kTileKeys + 16 + 4 + 2 * padded_head_size) + 2 * kTileKeys * head_size;
}

// A partial is the outcome of one query and one split: m, l at [0] and [1], o at [kPartialHead,
// +D).
struct AttentionKernels {
  // All splits of the item in ascending order, merged, divided and written to out.
  void (*attend)(const AttentionItem& item);
  // One split; partial of query i at partials + i * (kPartialHead + padded_head_size). Queries
  // that see nothing of the split are left alone.
  void (*attend_split)(const AttentionItem& item, int64_t split, float* partials);
  // Merges partials `stride` floats apart in ascending order into out [D]: the same roundings as
  // `attend`. `work` holds padded_head_size floats.
  void (*merge)(const float* partials, int64_t num_splits, int64_t stride, int64_t head_size,
                float* work, float* out);
  void (*quantize)(const float* values, int64_t cols, int16_t* quants, float* scales, float* sums);
};

extern const AttentionKernels kAttentionAvx2;
extern const AttentionKernels kAttentionAvx512;

}  // namespace sluice::kernels::cpu
