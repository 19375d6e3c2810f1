#pragma once

// Which queries of one KV head a block of attention has.

#include "kernels/cuda/attention.h"

namespace sluice::kernels::cuda {

struct QuerySpan {
  const int32_t* pages = nullptr;  // of the row
  int kv_head = 0;
  int first_token = 0;
  int first_position = 0;
  int first_head = 0;  // of those that the queries go through for each token
  int num_heads = 0;
  int offset = 0;  // of the first query
  int num_queries = 0;

  __device__ int token_index(int query) const { return (offset + query) / num_heads; }
  __device__ int position(int query) const { return first_position + token_index(query); }
  // Row of [T, H].
  __device__ int64_t head_row(int query, int all_heads) const {
    return static_cast<int64_t>(first_token + token_index(query)) * all_heads + first_head +
           (offset + query) % num_heads;
  }
  __device__ int last_position() const { return position(num_queries - 1); }
  __device__ static int first_seen(int position, int window) {
    return window > 0 ? max(0, position - window + 1) : 0;
  }
};

// Part `part` of an item: a KV head and up to 16 of the heads that share it.
__device__ __forceinline__ QuerySpan span_of_item(const AttentionArgs& args,
                                                  const AttentionItem& item, int part) {
  const int ratio = args.num_heads / static_cast<int>(args.kv.num_kv_heads);
  const int groups = (ratio + kItemQueries - 1) / kItemQueries;
  QuerySpan span;
  span.pages = args.pages + item.page_begin;
  span.kv_head = part / groups;
  span.first_token = item.first_token;
  span.first_position = item.first_position;
  span.first_head = span.kv_head * ratio + part % groups * kItemQueries;
  span.num_heads = min(kItemQueries, ratio - part % groups * kItemQueries);
  span.num_queries = item.num_tokens * span.num_heads;
  return span;
}

// Queries [begin, begin + count) of a block.
__device__ __forceinline__ QuerySpan span_of_block(const AttentionArgs& args,
                                                   const AttentionBlock& block, int kv_head,
                                                   int begin, int count) {
  QuerySpan span;
  span.pages = args.pages + block.page_begin;
  span.kv_head = kv_head;
  span.first_token = block.first_token;
  span.first_position = block.first_position;
  span.num_heads = args.num_heads / static_cast<int>(args.kv.num_kv_heads);
  span.first_head = kv_head * span.num_heads;
  span.offset = block.first_query + begin;
  span.num_queries = min(count, block.num_queries - begin);
  return span;
}

}  // namespace sluice::kernels::cuda
