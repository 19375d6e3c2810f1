#pragma once

// What a warp has of its 16 queries while a block goes through the tiles of their keys.

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/query_span.cuh"

namespace sluice::kernels::cuda {

// The outcome of the splits so far, each lane's own values where it finds them again.
template <int kHead>
struct WarpTotal {
  float4 columns[TileShape<kHead>::kColumns][32];
};

// The split under way, in registers.
template <int kHead>
struct WarpState {
  static constexpr int kColumns = TileShape<kHead>::kColumns;
  struct Factors {
    float2 of[2];  // of the queries g and g + 8
  };
  float most[2] = {kNoKeys, kNoKeys};
  float sum[2] = {0.0f, 0.0f};
  float out[kColumns][4] = {};
  float total_most[2] = {kNoKeys, kNoKeys};
  float total_sum[2] = {0.0f, 0.0f};
  bool flushed = false;

  // Adds a tile's weights, then its outcome column group by column group.
  __device__ __forceinline__ Factors add_weights(const TileWeights& weights) {
    Factors factors;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      factors.of[r] = merge_factors(most[r], weights.most[r]);
      most[r] = fmaxf(most[r], weights.most[r]);
      sum[r] = merge_value(sum[r], weights.sum[r], factors.of[r]);
    }
    return factors;
  }
  __device__ __forceinline__ void add_column(int column, const float (&part)[4],
                                             const Factors& factors) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[column][i] = merge_value(out[column][i], part[i], factors.of[i / 2]);
    }
  }

  // Adds the split to the whole and begins the next.
  __device__ __forceinline__ void flush(WarpTotal<kHead>& total) {
    float2 factors[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      factors[r] = merge_factors(total_most[r], most[r]);
      total_most[r] = fmaxf(total_most[r], most[r]);
      total_sum[r] = merge_value(total_sum[r], sum[r], factors[r]);
      most[r] = kNoKeys;
      sum[r] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      float4& kept = total.columns[n][threadIdx.x % 32];
      const float4 before = flushed ? kept : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      kept = make_float4(merge_value(before.x, out[n][0], factors[0]),
                         merge_value(before.y, out[n][1], factors[0]),
                         merge_value(before.z, out[n][2], factors[1]),
                         merge_value(before.w, out[n][3], factors[1]));
      clear(out[n]);
    }
    flushed = true;
  }
};

// By one warp: its 16 queries' rows, eight at a time on their way from memory.
template <int kHead, typename Rows>
__device__ void fill_queries(const AttentionArgs& args, const QuerySpan& span, Rows&& rows) {
  constexpr int kAtOnce = 8;
  if (span.num_queries <= 0) {  // nor is there any to be read
    for (int row = 0; row < kTileQueries; ++row) fill_no_query<kHead>(rows, row);
    __syncwarp();
    return;
  }
  const int head_size = static_cast<int>(args.kv.head_size);
#pragma unroll 1
  for (int first = 0; first < kTileQueries; first += kAtOnce) {
    QueryValues<kHead> values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = min(first + i, span.num_queries - 1);
      const float* q = args.q + span.head_row(row, args.num_heads) * head_size;
      values[i] = load_query<kHead>(
          head_size, [&](int d) { return __ldcg(reinterpret_cast<const float2*>(q + d)); });
    }
    float most[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= span.num_queries) values[i] = {};
      most[i] = most_of(values[i]);
    }
    // Side by side, not one query's after the other's.
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], offset));
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = first + i;
      const bool none = row >= span.num_queries;
      const int position = span.position(row);
      fill_query<kHead>(rows, row, none ? 0 : QuerySpan::first_seen(position, args.op.window),
                        none ? kSeesAll : position, values[i], most[i]);
    }
  }
  __syncwarp();
}

template <int kHead>
__device__ void store_outcome(const AttentionArgs& args, const QuerySpan& span,
                              const WarpState<kHead>& state, const WarpTotal<kHead>& total) {
  const int head_size = static_cast<int>(args.kv.head_size);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = threadIdx.x % 32 / 4 + 8 * r;
    if (query >= span.num_queries) continue;
    float* to = args.values + span.head_row(query, args.num_heads) * head_size;
#pragma unroll
    for (int n = 0; n < TileShape<kHead>::kColumns; ++n) {
      const int d = 8 * n + threadIdx.x % 4 * 2;
      if (d >= head_size) break;
      const float4 both = total.columns[n][threadIdx.x % 32];
      const float2 value = r == 0 ? make_float2(both.x, both.y) : make_float2(both.z, both.w);
      *reinterpret_cast<float2*>(to + d) = make_float2(__fdiv_rn(value.x, state.total_sum[r]),
                                                       __fdiv_rn(value.y, state.total_sum[r]));
    }
  }
}

}  // namespace sluice::kernels::cuda
