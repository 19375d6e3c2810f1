#pragma once

// Attention of up to 16 queries over one tile of 64 keys of an f16 cache, on tensor cores. The one
// arithmetic of prefill and decode, by one warp (attend_tile) or by the eight warps of a block
// (attend_tile_by_block), to the same bits:
//
//   q        each query times a power of two that brings its largest value into [2^11, 2^12), as
//   the
//            sum of two f16: high = f16(x), low = f16(x - high)
//   scores   m16n8k16 steps over ascending d, the high part before the low one in each; then times
//            (the power's inverse times `scale`), then capped. What is not finite becomes NaN
//   weights  exp(score - the maximum of those the query sees); exactly 0 for other keys
//   sum      of four partial sums, the t-th over the keys 8 n + 2 t and + 1: the two are added,
//   then
//            the pairs in ascending n; then (0 + 1) + (2 + 3)
//   outcome  weights as the sum of two f16 like q; steps over ascending keys, high before low
//
// D that is no multiple of 16 is filled with zeros up to kHead, which changes no bits.
//
// Tiles in shared memory, from the pages without a change of layout: both are read as
// ldmatrix.trans reads rows of 16 bytes.
//   keys     [4 pages][kHead][16] f16; the two halves of a row exchanged in d with bit 2 set, so
//            that eight rows lie in different banks
//   values   [64 keys][kHead + 8] f16

#include <cuda_fp16.h>

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/operand_rows.cuh"
#include "kernels/cuda/shared_tiles.cuh"

namespace sluice::kernels::cuda {

inline constexpr int kTileQueries = 16;
inline constexpr int kTilePages = kTileKeys / kPageTokens;

// Sizes in shared memory for heads of up to kHead values. All of them are multiples of 16.
template <int kHead>
struct TileShape {
  static_assert(kHead % 16 == 0);
  static constexpr int kSteps = kHead / 16;         // of the scores
  static constexpr int kColumns = kHead / 8;        // groups of eight columns of the outcome
  static constexpr int kRowBytes = kHead * 2 + 16;  // an odd number of 16 bytes
  static constexpr int kKeyBytes = kTileKeys * kHead * 2;
  static constexpr int kValueBytes = kTileKeys * kRowBytes;
};

// ---- loading

// The pages of one row for one KV head.
struct PagedHead {
  const std::byte* k;  // of page 0
  const std::byte* v;
  const int32_t* pages;  // of the row
  int64_t page_bytes;    // from page to page, K or V of all heads
  int head_size;         // D, a multiple of 8

  __device__ PagedHead(const KvLayer& kv, const int32_t* row_pages, int kv_head)
      : pages(row_pages), head_size(static_cast<int>(kv.head_size)) {
    const int64_t head_bytes = kv.head_size * kPageTokens * 2;
    page_bytes = kv.num_kv_heads * head_bytes;
    k = kv.k + kv_head * head_bytes;
    v = kv.v + kv_head * head_bytes;
  }
};

// Calls copy(page of the tile, chunk inside the page, page's offset in bytes) for this thread's
// share of the 16-byte chunks of a tile, 2 kHead a page, by kThreads threads. Pages at or beyond
// `end` have no entry in the table.
template <int kHead, int kThreads, typename Copy>
__device__ __forceinline__ void for_chunks(const PagedHead& head, int first_key, int end,
                                           int thread, const Copy& copy) {
  constexpr int kPageChunks = 2 * kHead;
  const int32_t* pages = head.pages + first_key / kPageTokens;
  const auto offset = [&](int page) {
    return first_key + page * kPageTokens < end ? pages[page] * head.page_bytes : 0;
  };
  if constexpr (kPageChunks % kThreads == 0) {
    int64_t offsets[kTilePages];
#pragma unroll
    for (int page = 0; page < kTilePages; ++page) offsets[page] = offset(page);
#pragma unroll
    for (int page = 0; page < kTilePages; ++page) {
#pragma unroll
      for (int i = 0; i < kPageChunks; i += kThreads) copy(page, i + thread, offsets[page]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kTilePages * kPageChunks; i += kThreads) {
      const int chunk = i + thread;
      if (chunk >= kTilePages * kPageChunks) break;
      copy(chunk / kPageChunks, chunk % kPageChunks, offset(chunk / kPageChunks));
    }
  }
}

// Requests the keys of the tile at first_key, a multiple of 64, into `to`. Zeros for pages at or
// beyond `end`, the row's, and for d at or beyond D. The caller commits and waits.
template <int kHead, int kThreads>
__device__ __forceinline__ void load_keys_async(uint32_t to, const PagedHead& head, int first_key,
                                                int end, int thread) {
  for_chunks<kHead, kThreads>(
      head, first_key, end, thread, [&](int page, int chunk, int64_t offset) {
        const int swizzled = page * 2 * kHead + (chunk ^ (chunk >> 3 & 1));
        copy_async(to + swizzled * 16, head.k + offset + chunk * 16,
                   first_key + page * kPageTokens < end && chunk / 2 < head.head_size);
      });
}

// The same for values. Zeros for keys before `begin` as well, which no query of the caller sees.
template <int kHead, int kThreads>
__device__ __forceinline__ void load_values_async(uint32_t to, const PagedHead& head, int first_key,
                                                  int begin, int end, int thread) {
  for_chunks<kHead, kThreads>(
      head, first_key, end, thread, [&](int page, int chunk, int64_t offset) {
        constexpr int kRowChunks = kHead / 8;
        const int slot = chunk / kRowChunks;
        const int column = chunk % kRowChunks * 8;
        const int key = page * kPageTokens + slot;
        copy_async(to + key * TileShape<kHead>::kRowBytes + column * 2,
                   head.v + offset + (slot * head.head_size + column) * 2,
                   first_key + key < end && first_key + key >= begin && column < head.head_size);
      });
}

// Where the value d of a tile's key lies in its keys and in its values, in bytes.
template <int kHead>
__device__ __forceinline__ int tile_key_offset(int key, int d) {
  const int chunk = d * 2 + key % kPageTokens / 8;
  return (key / kPageTokens * 2 * kHead + (chunk ^ (chunk >> 3 & 1))) * 16 + key % 8 * 2;
}
template <int kHead>
__device__ __forceinline__ int tile_value_offset(int key, int d) {
  return key * TileShape<kHead>::kRowBytes + d * 2;
}

// ---- queries

// Of 16 queries.
struct QueryFacts {
  float factor[kTileQueries];   // of the scores: the power's inverse
  int32_t first[kTileQueries];  // positions that the query sees
  int32_t last[kTileQueries];
};

// 16 queries in shared memory, each filled by fill_query or fill_no_query.
template <int kHead>
struct QueryRows : QueryFacts {
  __half high[kTileQueries][kHead + 8];
  __half low[kTileQueries][kHead + 8];

  __device__ QueryFacts& facts() { return *this; }
  __device__ void store(int row, int d, __half2 first, __half2 second) {
    *reinterpret_cast<__half2*>(&high[row][d]) = first;
    *reinterpret_cast<__half2*>(&low[row][d]) = second;
  }
};

// A lane's part of a query: the values d and d + 1 for every d = 64 i + 2 lane.
template <int kHead>
struct QueryValues {
  static constexpr int kPairs = (kHead + 63) / 64;
  float2 x[kPairs];
};
// load(d) gives the values d and d + 1 for even d below D. One warp.
template <int kHead, typename Load>
__device__ __forceinline__ QueryValues<kHead> load_query(int head_size, const Load& load) {
  QueryValues<kHead> values;
#pragma unroll
  for (int i = 0; i < QueryValues<kHead>::kPairs; ++i) {
    const int d = 64 * i + 2 * (threadIdx.x % 32);
    values.x[i] = d < head_size ? load(d) : make_float2(0.0f, 0.0f);
  }
  return values;
}
// The largest of the lane's values.
template <int kHead>
__device__ __forceinline__ float most_of(const QueryValues<kHead>& values) {
  float most = 0.0f;
#pragma unroll
  for (const float2 x : values.x) most = fmaxf(most, fmaxf(fabsf(x.x), fabsf(x.y)));
  return most;
}
// Row `row` of what is operands, where rows.store(row, d, high, low) puts it. `most`: of the query.
template <int kHead, typename Rows>
__device__ __forceinline__ void fill_query(Rows& rows, int row, int first, int last,
                                           const QueryValues<kHead>& values, float most) {
  const int lane = threadIdx.x % 32;
  const int shift = shift_of(most);
  const float scale = power_of_two(shift);
#pragma unroll
  for (int i = 0; i < QueryValues<kHead>::kPairs; ++i) {
    const int d = 64 * i + 2 * lane;
    if (d >= kHead) break;
    const float2 scaled =
        make_float2(__fmul_rn(values.x[i].x, scale), __fmul_rn(values.x[i].y, scale));
    const __half2 high = __floats2half2_rn(scaled.x, scaled.y);
    const float2 back = __half22float2(high);
    rows.store(row, d, high,
               __floats2half2_rn(__fsub_rn(scaled.x, back.x), __fsub_rn(scaled.y, back.y)));
  }
  if (lane == 0) {
    QueryFacts& facts = rows.facts();
    facts.factor[row] = power_of_two(-shift);
    facts.first[row] = first;
    facts.last[row] = last;
  }
}
template <int kHead, typename Rows, typename Load>
__device__ __forceinline__ void fill_query(Rows& rows, int row, int head_size, int first, int last,
                                           const Load& load) {
  const QueryValues<kHead> values = load_query<kHead>(head_size, load);
  const uint32_t most = __reduce_max_sync(~0u, __float_as_uint(most_of(values)));
  fill_query<kHead>(rows, row, first, last, values, __uint_as_float(most));
}
// A row whose outcome nobody reads: it sees everything, so that masks stay with those that have
// some.
inline constexpr int kSeesAll = 0x7fffffff;
template <int kHead, typename Rows>
__device__ __forceinline__ void fill_no_query(Rows& rows, int row) {
  fill_query<kHead>(rows, row, 0, 0, kSeesAll, [](int) { return make_float2(0.0f, 0.0f); });
}

// Operands of 16 queries, read from shared memory at each step.
template <int kHead>
struct SharedQueries {
  uint32_t high;  // where the lane's row begins
  uint32_t low;

  __device__ explicit SharedQueries(const QueryRows<kHead>& rows) {
    const int lane = threadIdx.x % 32;
    high = shared_address(&rows.high[lane % 16][lane / 16 * 8]);
    low = shared_address(&rows.low[lane % 16][lane / 16 * 8]);
  }
  __device__ __forceinline__ void operands(int step, uint32_t (&a)[4], uint32_t (&b)[4]) const {
    load_matrices(a, high + step * 32);
    load_matrices(b, low + step * 32);
  }
};

// The same kept in registers.
template <int kHead>
struct HeldQueries {
  uint32_t high[TileShape<kHead>::kSteps][4];
  uint32_t low[TileShape<kHead>::kSteps][4];

  __device__ explicit HeldQueries(const QueryRows<kHead>& rows) {
    const SharedQueries<kHead> shared(rows);
#pragma unroll
    for (int step = 0; step < TileShape<kHead>::kSteps; ++step) {
      shared.operands(step, high[step], low[step]);
    }
  }
  __device__ __forceinline__ void operands(int step, uint32_t (&a)[4], uint32_t (&b)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = high[step][i];
      b[i] = low[step][i];
    }
  }
};

// What lane 4 g + t needs of its two queries, g and g + 8.
struct LaneQueries {
  float factor[2];  // of the scores, `scale` included
  int first[2];
  int last[2];

  __device__ LaneQueries(const QueryFacts& rows, float scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = threadIdx.x % 32 / 4 + 8 * r;
      factor[r] = __fmul_rn(rows.factor[row], scale);
      first[r] = rows.first[row];
      last[r] = rows.last[row];
    }
  }
  __device__ bool sees(int r, int key) const { return key >= first[r] && key <= last[r]; }
  // Any key, or every key, of the tile.
  __device__ bool sees_any(int r, int first_key) const {
    return first_key <= last[r] && first_key + kTileKeys > first[r];
  }
  __device__ bool sees_all(int first_key) const {
    return first_key >= max(first[0], first[1]) &&
           first_key + kTileKeys - 1 <= min(last[0], last[1]);
  }
};

// ---- arithmetic that both ways share

// The score, not yet capped, of what the tensor cores summed. Infinities become NaN: the weight of
// -infinity would pass for a number.
__device__ __forceinline__ float scale_score(float product, float factor) {
  const float score = __fmul_rn(product, factor);
  return __fmaf_rn(score, 0.0f, score);
}
__device__ __forceinline__ float max_of_four_lanes(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float sum_of_four_lanes(float x) {
  x = __fadd_rn(x, __shfl_xor_sync(~0u, x, 1));
  return __fadd_rn(x, __shfl_xor_sync(~0u, x, 2));
}
// A part's maximum is above kNoKeys whatever its scores: a NaN among them must not look like no
// keys at all.
__device__ __forceinline__ float part_most(float most_seen, bool sees_any) {
  return sees_any ? fmaxf(most_seen, kLowestScore) : kNoKeys;
}
// (x, y) as the sum of two pairs of f16.
__device__ __forceinline__ void split_pair(float x, float y, uint32_t& high, uint32_t& low) {
  const __half2 first = __floats2half2_rn(x, y);
  const float2 back = __half22float2(first);
  const __half2 second = __floats2half2_rn(__fsub_rn(x, back.x), __fsub_rn(y, back.y));
  memcpy(&high, &first, 4);
  memcpy(&low, &second, 4);
}
// Where lane l's row of four matrices of keys lies in a page: d 0 to 7 and 8 to 15 of a step, of
// the page's first eight keys, then of the others.
__device__ __forceinline__ int key_matrix_offset(int lane) {
  const int row = lane % 8;
  return ((lane / 8 % 2 * 8 + row) * 2 + (lane / 16 ^ row / 4)) * 16;
}

// ---- one warp

__device__ __forceinline__ void clear(float (&x)[4]) { x[0] = x[1] = x[2] = x[3] = 0.0f; }

// The weights of 16 queries for the keys of a tile, as operands of the products with the values:
// k16 step j holds the keys from 16 j.
struct TileWeights {
  uint32_t high[kTilePages][4];
  uint32_t low[kTilePages][4];
  float most[2];  // of the queries g and g + 8
  float sum[2];
};

template <int kHead, typename Queries>
__device__ __forceinline__ void score_tile(const Queries& queries, uint32_t keys,
                                           float (&scores)[8][4]) {
#pragma unroll
  for (int n = 0; n < 8; ++n) clear(scores[n]);
  const uint32_t from = keys + key_matrix_offset(threadIdx.x % 32);
#pragma unroll
  for (int step = 0; step < TileShape<kHead>::kSteps; ++step) {
    uint32_t high[4], low[4], key[kTilePages][4];
    queries.operands(step, high, low);
#pragma unroll
    for (int page = 0; page < kTilePages; ++page) {
      load_transposed(key[page], from + page * kHead * 32 + step * 512);
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      mma_step(scores[n], high, key[n / 2][n % 2 * 2], key[n / 2][n % 2 * 2 + 1]);
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      mma_step(scores[n], low, key[n / 2][n % 2 * 2], key[n / 2][n % 2 * 2 + 1]);
    }
  }
}

// scores[n][i] = change(n, i, scores[n][i]).
template <typename Change>
__device__ __forceinline__ void for_scores(float (&scores)[8][4], const Change& change) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = change(n, i, scores[n][i]);
  }
}

__device__ __forceinline__ void weigh_tile(float (&scores)[8][4], const LaneQueries& queries,
                                           int first_key, const PagedAttentionArgs& op,
                                           TileWeights& weights) {
  for_scores(scores, [&](int, int i, float x) { return scale_score(x, queries.factor[i / 2]); });
  if (op.softcap > 0.0f) {
    for_scores(scores, [&](int, int, float x) { return soft_cap(x, op.softcap); });
  }
  if (!__all_sync(~0u, queries.sees_all(first_key))) {
    const int lane_key = first_key + threadIdx.x % 4 * 2;
    for_scores(scores, [&](int n, int i, float x) {
      return queries.sees(i / 2, lane_key + 8 * n + i % 2) ? x : -INFINITY;  // weight 0 below
    });
  }
  float most[2] = {kNoKeys, kNoKeys};
  for_scores(scores, [&](int, int i, float x) {
    most[i / 2] = fmaxf(most[i / 2], x);
    return x;
  });
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    weights.most[r] = part_most(max_of_four_lanes(most[r]), queries.sees_any(r, first_key));
    weights.sum[r] = 0.0f;
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float x = exp_f32(__fsub_rn(scores[n][2 * r], weights.most[r]));
      const float y = exp_f32(__fsub_rn(scores[n][2 * r + 1], weights.most[r]));
      weights.sum[r] = __fadd_rn(weights.sum[r], __fadd_rn(x, y));
      split_pair(x, y, weights.high[n / 2][n % 2 * 2 + r], weights.low[n / 2][n % 2 * 2 + r]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) weights.sum[r] = sum_of_four_lanes(weights.sum[r]);
}

// Groups of eight columns that weigh_values makes at a time: enough for the products to overlap.
template <int kHead>
inline constexpr int kColumnsAtOnce = kHead / 8 % 4 == 0 ? 4 : kHead / 8;

// The outcome's columns [8 column, 8 (column + kCount)): lane 4 g + t receives of group n the
// columns 2 t and + 1 of query g, then of query g + 8.
template <int kHead, int kCount>
__device__ __forceinline__ void weigh_values(const TileWeights& weights, uint32_t values,
                                             int column, float (&out)[kCount][4]) {
  static_assert(kCount % 2 == 0);
#pragma unroll
  for (int n = 0; n < kCount; ++n) clear(out[n]);
  const int lane = threadIdx.x % 32;
  const uint32_t from =
      values + lane % 16 * TileShape<kHead>::kRowBytes + (column + lane / 16) * 16;
#pragma unroll
  for (int step = 0; step < kTilePages; ++step) {
    uint32_t value[kCount / 2][4];
#pragma unroll
    for (int pair = 0; pair < kCount / 2; ++pair) {
      load_transposed(value[pair], from + step * 16 * TileShape<kHead>::kRowBytes + pair * 32);
    }
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      mma_step(out[n], weights.high[step], value[n / 2][n % 2 * 2], value[n / 2][n % 2 * 2 + 1]);
    }
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      mma_step(out[n], weights.low[step], value[n / 2][n % 2 * 2], value[n / 2][n % 2 * 2 + 1]);
    }
  }
}

// One warp: parts [16][2 + D] (maximum, sum, outcome) of a tile, `stride` floats apart, even; only
// the first num_queries are written.
template <int kHead>
__device__ __forceinline__ void store_part(const TileWeights& weights, uint32_t values,
                                           int head_size, float* parts, int stride,
                                           int num_queries) {
  constexpr int kCount = kColumnsAtOnce<kHead>;
  const int row = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (t != 0 || row + 8 * r >= num_queries) continue;
    *reinterpret_cast<float2*>(parts + (row + 8 * r) * stride) =
        make_float2(weights.most[r], weights.sum[r]);
  }
#pragma unroll
  for (int column = 0; column < TileShape<kHead>::kColumns; column += kCount) {
    float out[kCount][4];
    weigh_values<kHead>(weights, values, column, out);
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int d = 8 * (column + n) + 2 * t;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (d >= head_size || row + 8 * r >= num_queries) continue;
        *reinterpret_cast<float2*>(parts + (row + 8 * r) * stride + 2 + d) =
            make_float2(out[n][2 * r], out[n][2 * r + 1]);
      }
    }
  }
}

// One warp: the part of 16 queries of the tile at first_key, whose keys and values lie in shared
// memory.
template <int kHead, typename Queries>
__device__ __forceinline__ void attend_tile(const Queries& queries, const LaneQueries& lane_queries,
                                            uint32_t keys, uint32_t values, int first_key,
                                            const PagedAttentionArgs& op, int head_size,
                                            float* parts, int stride, int num_queries) {
  float scores[8][4];
  score_tile<kHead>(queries, keys, scores);
  TileWeights weights;
  weigh_tile(scores, lane_queries, first_key, op, weights);
  store_part<kHead>(weights, values, head_size, parts, stride, num_queries);
}

// ---- the eight warps of a block

// Shared memory that attend_tile_by_block works in.
struct BlockTile {
  float most[8][kTileQueries];     // of each warp's eight keys
  float sums[8][kTileQueries][4];  // of pairs of keys
  uint2 high[8][32];               // weights as operands: of queries g, g + 8
  uint2 low[8][32];
};

// attend_tile by all 256 threads, each warp with eight keys, then with its share of the columns.
// The rows, keys and values must be there for all threads; the parts are so after the caller's next
// barrier, and before it `tile`, keys and values must not be written.
template <int kHead>
__device__ __forceinline__ void attend_tile_by_block(const QueryRows<kHead>& rows, uint32_t keys,
                                                     uint32_t values, int first_key,
                                                     const PagedAttentionArgs& op, int head_size,
                                                     BlockTile& tile, float* parts, int stride,
                                                     int num_queries) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int row = lane / 4;
  const int t = lane % 4;
  const LaneQueries lane_queries(rows, op.scale);
  const SharedQueries<kHead> queries(rows);

  float scores[4] = {};
  const int key_row = lane % 16;
  const uint32_t from =
      keys + warp / 2 * kHead * 32 + (key_row * 2 + (warp % 2 ^ key_row / 4 % 2)) * 16;
#pragma unroll
  for (int step = 0; step < TileShape<kHead>::kSteps; ++step) {
    uint32_t high[4], low[4], key[2];
    queries.operands(step, high, low);
    load_transposed(key, from + step * 512);
    mma_step(scores, high, key[0], key[1]);
    mma_step(scores, low, key[0], key[1]);
  }
  bool seen[4];
  float most[2] = {kNoKeys, kNoKeys};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    scores[i] = scale_score(scores[i], lane_queries.factor[i / 2]);
    if (op.softcap > 0.0f) scores[i] = soft_cap(scores[i], op.softcap);
    seen[i] = lane_queries.sees(i / 2, first_key + 8 * warp + 2 * t + i % 2);
    if (seen[i]) most[i / 2] = fmaxf(most[i / 2], scores[i]);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    most[r] = max_of_four_lanes(most[r]);
    if (t == 0) tile.most[warp][row + 8 * r] = most[r];
  }
  meet_rows();
  uint32_t high[2], low[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int n = 0; n < 8; ++n) most[r] = fmaxf(most[r], tile.most[n][row + 8 * r]);
    most[r] = part_most(most[r], lane_queries.sees_any(r, first_key));
    const float x = seen[2 * r] ? exp_f32(__fsub_rn(scores[2 * r], most[r])) : 0.0f;
    const float y = seen[2 * r + 1] ? exp_f32(__fsub_rn(scores[2 * r + 1], most[r])) : 0.0f;
    tile.sums[warp][row + 8 * r][t] = __fadd_rn(x, y);
    split_pair(x, y, high[r], low[r]);
  }
  tile.high[warp][lane] = make_uint2(high[0], high[1]);
  tile.low[warp][lane] = make_uint2(low[0], low[1]);
  meet_rows();
  const auto weigh_columns = [&](int n) {
    float out[4] = {};
    const uint32_t column = values + lane * TileShape<kHead>::kRowBytes + n * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t value[4];
      load_transposed(value, column + half * 32 * TileShape<kHead>::kRowBytes);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int pair = 4 * half + 2 * j;
        const uint2 h0 = tile.high[pair][lane], h1 = tile.high[pair + 1][lane];
        const uint2 l0 = tile.low[pair][lane], l1 = tile.low[pair + 1][lane];
        const uint32_t a[4] = {h0.x, h0.y, h1.x, h1.y};
        const uint32_t b[4] = {l0.x, l0.y, l1.x, l1.y};
        mma_step(out, a, value[2 * j], value[2 * j + 1]);
        mma_step(out, b, value[2 * j], value[2 * j + 1]);
      }
    }
    const int d = 8 * n + 2 * t;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (d >= head_size || row + 8 * r >= num_queries) continue;
      *reinterpret_cast<float2*>(parts + (row + 8 * r) * stride + 2 + d) =
          make_float2(out[2 * r], out[2 * r + 1]);
    }
  };
  // Without a loop the sums below take turns with the steps.
  if constexpr (TileShape<kHead>::kColumns == 8) {
    weigh_columns(warp);
  } else {
    for (int n = warp; n < TileShape<kHead>::kColumns; n += 8) weigh_columns(n);
  }
  // Each warp sums two queries' weights. Its lanes hold the maxima of the queries row and row + 8.
  const int query = 2 * warp + row % 2;
  float sum = tile.sums[0][query][t];
#pragma unroll
  for (int n = 1; n < 8; ++n) sum = __fadd_rn(sum, tile.sums[n][query][t]);
  sum = sum_of_four_lanes(sum);
  const float own = __shfl_sync(~0u, warp < 4 ? most[0] : most[1], query % 8 * 4);
  if (lane % 4 != 0 || lane >= 8 || query >= num_queries) return;
  *reinterpret_cast<float2*>(parts + query * stride) = make_float2(own, sum);
}

}  // namespace sluice::kernels::cuda
