#pragma once

// What the sampler does with a row of logits, by one thread block and in exact integers: find the
// value at which a sum over falling values reaches a need (radix_cut), and the token at which a
// running sum over ascending ids passes a target (locate). Top-k, top-p, ties and the draw are all
// one of the two. Nothing depends on the order in which threads come.
//
// A row is cut into tiles of 256 logits, one warp each. The largest logit of every tile is kept in
// shared memory, so that a pass reads only tiles that can hold what it looks for.
//
// Every function here is called by all threads of the block. Those that use Scratch begin with a
// barrier, which frees what the one before left there.

#include <cstdint>

#include "kernels/cuda/sampling_math.cuh"

namespace sluice::kernels::cuda {

inline constexpr int kTile = 256;
inline constexpr int kTilePerLane = kTile / 32;
inline constexpr int kDigitBits = 11;
inline constexpr int kBins = 1 << kDigitBits;
inline constexpr int kMaxListed = 1024;  // the threads of a block, at most
inline constexpr int kNoLimit = 0x7fffffff;

struct LogitRow {
  const float* logits;  // [vocab_size]; may be written by this block: never through the read-only
                        // cache
  int32_t vocab_size;
  int32_t num_tiles;
  bool aligned;  // to 16 bytes
};

struct Tiles {
  uint64_t* sums;  // [num_tiles] shared memory
  uint32_t* keys;  // [num_tiles] shared memory: key of the largest logit
};

// Static shared memory of a block.
struct Scratch {
  struct Histogram {  // of 64-bit sums, in two halves
    uint32_t low[kBins];
    uint32_t high[kBins];
  };
  struct List {  // in no order
    uint64_t values[kMaxListed];
    int32_t tokens[kMaxListed];
  };
  union {
    Histogram histogram;
    List list;
  };
  uint64_t warp_values[32];
  uint64_t found_value;
  uint64_t found_sum;
  int32_t found_index;
  int32_t found_token;
  uint32_t num_listed;
};

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) & 31; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) >> 5; }

// Of value i in [0, 8) of this lane: quads of neighbours, so that ids ascend by i / 4, lane, i % 4.
__device__ __forceinline__ int32_t tile_token(int32_t tile, int i) {
  return tile * kTile + (i >> 2) * 128 + lane_index() * 4 + (i & 3);
}

// This lane's logits of a tile; -infinity beyond the vocabulary.
__device__ __forceinline__ void load_tile(const LogitRow& row, int32_t tile,
                                          float (&logits)[kTilePerLane]) {
#pragma unroll
  for (int i = 0; i < kTilePerLane; i += 4) {
    const int32_t token = tile_token(tile, i);
    if (row.aligned && token + 3 < row.vocab_size) {
      const float4 quad = *reinterpret_cast<const float4*>(row.logits + token);
      logits[i] = quad.x;
      logits[i + 1] = quad.y;
      logits[i + 2] = quad.z;
      logits[i + 3] = quad.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        logits[i + j] = token + j < row.vocab_size ? row.logits[token + j] : negative_infinity();
      }
    }
  }
}

// body(tile, logits) with whole warps for every tile that active(tile) admits. Two tiles are
// requested before the first is used: 64 KB in flight in a block of 1,024 threads.
template <int kThreads, typename Active, typename Body>
__device__ __forceinline__ void for_tiles(const LogitRow& row, Active active, Body body) {
  constexpr int kWarps = kThreads / 32;
  for (int32_t tile = warp_index(); tile < row.num_tiles; tile += 2 * kWarps) {
    const int32_t next = tile + kWarps;
    const bool first = active(tile);
    const bool second = next < row.num_tiles && active(next);
    float a[kTilePerLane], b[kTilePerLane];
    if (first) load_tile(row, tile, a);
    if (second) load_tile(row, next, b);
    if (first) body(tile, a);
    if (second) body(next, b);
  }
}

__device__ __forceinline__ uint64_t warp_inclusive_scan(uint64_t value) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, value, offset);
    if (lane_index() >= offset) value += other;
  }
  return value;
}
__device__ __forceinline__ uint64_t warp_sum(uint64_t value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// The sum over the threads before this one, and the sum over all.
template <int kThreads>
__device__ __forceinline__ uint64_t block_exclusive_scan(uint64_t value, Scratch& scratch,
                                                         uint64_t* total) {
  constexpr int kWarps = kThreads / 32;
  const uint64_t inclusive = warp_inclusive_scan(value);
  __syncthreads();
  if (lane_index() == 31) scratch.warp_values[warp_index()] = inclusive;
  __syncthreads();
  const uint64_t warps =
      warp_inclusive_scan(lane_index() < kWarps ? scratch.warp_values[lane_index()] : 0);
  *total = __shfl_sync(~0u, warps, 31);
  const uint64_t before = __shfl_sync(~0u, warps, (warp_index() + 31) & 31);
  return (warp_index() == 0 ? 0 : before) + inclusive - value;
}

template <int kThreads>
__device__ __forceinline__ uint32_t block_max(uint32_t value, Scratch& scratch) {
  constexpr int kWarps = kThreads / 32;
  value = __reduce_max_sync(~0u, value);
  __syncthreads();
  if (lane_index() == 0) scratch.warp_values[warp_index()] = value;
  __syncthreads();
  return __reduce_max_sync(
      ~0u, lane_index() < kWarps ? static_cast<uint32_t>(scratch.warp_values[lane_index()]) : 0u);
}

// The first token, by ascending id, at which the running sum of mass(token, logit) exceeds
// target_of(sum of all), which is below that sum. Tiles that active(tile) refuses have no mass.
template <int kThreads, typename Active, typename Mass, typename TargetOf>
__device__ __forceinline__ int32_t locate(const LogitRow& row, const Tiles& tiles, Scratch& scratch,
                                          Active active, Mass mass, TargetOf target_of) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  for (int32_t tile = thread; tile < row.num_tiles; tile += kThreads) tiles.sums[tile] = 0;
  if (thread == 0) scratch.found_index = scratch.found_token = 0;
  __syncthreads();
  for_tiles<kThreads>(row, active, [&](int32_t tile, const float(&logits)[kTilePerLane]) {
    uint64_t sum = 0;
#pragma unroll
    for (int i = 0; i < kTilePerLane; ++i) {
      const int32_t token = tile_token(tile, i);
      if (token < row.vocab_size) sum += mass(token, logits[i]);
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) tiles.sums[tile] = sum;
  });
  __syncthreads();
  const int32_t per_thread = (row.num_tiles + kThreads - 1) / kThreads;
  const int32_t begin = thread * per_thread;
  const int32_t end = begin + per_thread < row.num_tiles ? begin + per_thread : row.num_tiles;
  uint64_t local = 0;
  for (int32_t tile = begin; tile < end; ++tile) local += tiles.sums[tile];
  uint64_t total = 0;
  const uint64_t before = block_exclusive_scan<kThreads>(local, scratch, &total);
  const uint64_t target = target_of(total);
  if (target >= before && target - before < local) {
    uint64_t rest = target - before;
    int32_t tile = begin;
    while (rest >= tiles.sums[tile]) rest -= tiles.sums[tile++];
    scratch.found_index = tile;
    scratch.found_value = rest;
  }
  __syncthreads();
  if (warp_index() == 0) {
    const int32_t tile = scratch.found_index;
    const uint64_t rest = scratch.found_value;
    float logits[kTilePerLane];
    load_tile(row, tile, logits);
    uint64_t quads_before = 0;
#pragma unroll
    for (int i = 0; i < kTilePerLane; i += 4) {
      uint64_t masses[4];
      uint64_t sum = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int32_t token = tile_token(tile, i + j);
        masses[j] = token < row.vocab_size ? mass(token, logits[i + j]) : 0;
        sum += masses[j];
      }
      const uint64_t inclusive = warp_inclusive_scan(sum);
      uint64_t running = quads_before + inclusive - sum;
      if (rest >= running && rest - running < sum) {
        bool found = false;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          running += masses[j];
          if (!found && running > rest) {
            found = true;
            scratch.found_token = tile_token(tile, i + j);
          }
        }
      }
      quads_before += __shfl_sync(~0u, inclusive, 31);
    }
  }
  __syncthreads();
  return scratch.found_token;
}

// Adds in two native 32-bit atomics: shared memory has no 64-bit add, only a loop that compares and
// swaps. The sum is whole once all have added.
__device__ __forceinline__ void add_to_bin(Scratch::Histogram& histogram, uint32_t bin,
                                           uint64_t mass) {
  const uint32_t low = static_cast<uint32_t>(mass);
  const uint32_t before = atomicAdd(&histogram.low[bin], low);
  const uint32_t high = static_cast<uint32_t>(mass >> 32) + (before + low < before ? 1u : 0u);
  if (high != 0) atomicAdd(&histogram.high[bin], high);
}

// A set of tokens with values: those above `value`, and of those at it the ones up to `token`.
struct Cut {
  uint64_t value = 0;
  int32_t token = kNoLimit;

  __device__ __forceinline__ bool keeps(int32_t id, uint64_t id_value) const {
    return id_value > value || (id_value == value && id <= token);
  }
};

// Where radix_cut stands: the wanted cut lies among the values v with v >> shift == prefix.
struct CutRange {
  uint64_t prefix;
  int shift;
  uint64_t above;   // mass of the larger values; less than the need
  uint64_t inside;  // mass of the range
};

// The cut in a range that holds at most kThreads tokens, one a thread: each adds what is better.
template <int kThreads, typename Bound, typename ValueOf, typename MassOf>
__device__ __forceinline__ Cut cut_listed(const LogitRow& row, Scratch& scratch, uint64_t least,
                                          const CutRange& range, uint64_t need, Bound bound,
                                          ValueOf value_of, MassOf mass_of) {
  const uint32_t thread = threadIdx.x;
  __syncthreads();
  if (thread == 0) scratch.num_listed = 0;
  __syncthreads();
  for_tiles<kThreads>(
      row, [&](int32_t tile) { return bound(tile) >= least; },
      [&](int32_t tile, const float(&logits)[kTilePerLane]) {
#pragma unroll
        for (int i = 0; i < kTilePerLane; ++i) {
          const int32_t token = tile_token(tile, i);
          const uint64_t value = token < row.vocab_size ? value_of(token, logits[i]) : 0;
          if (value < least || value >> range.shift != range.prefix) continue;
          const uint32_t slot = atomicAdd(&scratch.num_listed, 1u);
          scratch.list.values[slot] = value;
          scratch.list.tokens[slot] = token;
        }
      });
  __syncthreads();
  const uint32_t num_listed = scratch.num_listed;
  if (thread < num_listed) {
    const uint64_t value = scratch.list.values[thread];
    const int32_t token = scratch.list.tokens[thread];
    uint64_t before = range.above;
    for (uint32_t i = 0; i < num_listed; ++i) {
      const uint64_t other = scratch.list.values[i];
      if (other > value || (other == value && scratch.list.tokens[i] < token)) {
        before += mass_of(other);
      }
    }
    if (before < need && before + mass_of(value) >= need) {
      scratch.found_value = value;
      scratch.found_token = token;
    }
  }
  __syncthreads();
  return {scratch.found_value, scratch.found_token};
}

// The shortest run of tokens by falling values, ties by lower id, whose masses reach the need:
// need_of(mass of all), at least 1 and at most that mass.
//
// value_of(token, logit) is below 2^kBits; tokens with values below `floor` >= 1 do not count. A
// token weighs mass_of(its value), which is positive and does not fall as values rise. bound(tile)
// is at least every value of the tile.
//
// A digit of 11 bits a pass, until what is left fits a list. What lies in the lowest bin of a digit
// is not added to it, most of a vocabulary being there: its mass is what the others leave.
template <int kThreads, int kBits, typename Bound, typename ValueOf, typename MassOf,
          typename NeedOf>
__device__ __forceinline__ Cut radix_cut(const LogitRow& row, const Tiles& tiles, Scratch& scratch,
                                         uint64_t floor, Bound bound, ValueOf value_of,
                                         MassOf mass_of, NeedOf need_of) {
  constexpr int kBinsPerThread = kBins / kThreads;
  static_assert(kBinsPerThread * kThreads == kBins);
  CutRange range = {0, kBits, 0, 0};
  uint64_t need = 0;
  uint64_t least = floor;
  do {
    const int top = range.shift;
    const int shift = top > kDigitBits ? top - kDigitBits : 0;
    const uint32_t digit_mask = (1u << (top - shift)) - 1;
    __syncthreads();
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) {
      scratch.histogram.low[bin] = scratch.histogram.high[bin] = 0;
    }
    __syncthreads();
    uint64_t sum = 0;
    for_tiles<kThreads>(
        row, [&](int32_t tile) { return bound(tile) >= least; },
        [&](int32_t tile, const float(&logits)[kTilePerLane]) {
#pragma unroll
          for (int i = 0; i < kTilePerLane; ++i) {
            const int32_t token = tile_token(tile, i);
            const uint64_t value = token < row.vocab_size ? value_of(token, logits[i]) : 0;
            if (value < least || value >> top != range.prefix) continue;
            const uint64_t mass = mass_of(value);
            sum += mass;
            const uint32_t bin = static_cast<uint32_t>(value >> shift) & digit_mask;
            if (bin != 0) add_to_bin(scratch.histogram, bin, mass);
          }
        });
    if (top == kBits) {
      block_exclusive_scan<kThreads>(sum, scratch, &range.inside);
      need = need_of(range.inside);
    }
    __syncthreads();
    // Thread 0 has the highest bins.
    const int highest = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;
    uint64_t bins[kBinsPerThread];
    uint64_t local = 0;
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      bins[i] = static_cast<uint64_t>(scratch.histogram.high[highest - i]) << 32 |
                scratch.histogram.low[highest - i];
      local += bins[i];
    }
    uint64_t in_bins = 0;
    uint64_t before = range.above + block_exclusive_scan<kThreads>(local, scratch, &in_bins);
    range.prefix <<= top - shift;
    range.shift = shift;
    if (range.above + in_bins < need) {
      range.above += in_bins;
      range.inside -= in_bins;
    } else {
      if (before < need && before + local >= need) {
        bool found = false;
#pragma unroll
        for (int i = 0; i < kBinsPerThread; ++i) {
          if (!found && before + bins[i] >= need) {
            found = true;
            scratch.found_index = highest - i;
            scratch.found_value = bins[i];
            scratch.found_sum = before;
          }
          before += bins[i];
        }
      }
      __syncthreads();
      range.prefix |= static_cast<uint32_t>(scratch.found_index);
      range.inside = scratch.found_value;
      range.above = scratch.found_sum;
    }
    const uint64_t lowest = range.prefix << range.shift;
    least = least > lowest ? least : lowest;
    // The lightest token of the range bounds how many there are.
    if (range.shift > 0 && range.inside <= kThreads * mass_of(least)) {
      return cut_listed<kThreads>(row, scratch, least, range, need, bound, value_of, mass_of);
    }
  } while (range.shift > 0);
  Cut cut;
  cut.value = range.prefix;
  const uint64_t rest = need - range.above;
  if (rest <= range.inside - mass_of(cut.value)) {
    cut.token = locate<kThreads>(
        row, tiles, scratch, [&](int32_t tile) { return bound(tile) >= cut.value; },
        [&](int32_t token, float logit) -> uint64_t {
          return value_of(token, logit) == cut.value ? mass_of(cut.value) : 0;
        },
        [&](uint64_t) { return rest - 1; });
  }
  return cut;
}

// What typical-p leaves of the tokens that weigh more than 0: those nearer to the mean surprise
// than `distance`, and of those at it the ones up to `token`.
struct TypicalCut {
  int32_t mean = 0;
  int32_t distance = -1;  // below 0: all are left
  int32_t token = kNoLimit;

  __device__ __forceinline__ static int32_t distance_of(int32_t surprise, int32_t mean) {
    return surprise > mean ? surprise - mean : mean - surprise;
  }
  __device__ __forceinline__ bool keeps(int32_t id, int32_t surprise) const {
    if (distance < 0) return true;
    const int32_t mine = distance_of(surprise, mean);
    return mine < distance || (mine == distance && id <= token);
  }
};

// The shortest run by rising distance of surprise_of(logit) from its weighted mean, ties by lower
// id, whose weights add up to ceil(fixed * sum) and at least 1. bound(tile) is 0 only where all
// weights are.
template <int kThreads, typename Bound, typename WeightOf, typename SurpriseOf>
__device__ __forceinline__ TypicalCut cut_typical(const LogitRow& row, const Tiles& tiles,
                                                  Scratch& scratch, uint64_t fixed, Bound bound,
                                                  WeightOf weight_of, SurpriseOf surprise_of) {
  constexpr int kBinsPerThread = kBins / kThreads;
  static_assert(2 * kDigitBits >= 22, "distances are below 2^22");
  const auto active = [&](int32_t tile) { return bound(tile) > 0; };
  // visit(weight, surprise) for all tokens that weigh more than 0.
  const auto for_weighty = [&](auto visit) {
    for_tiles<kThreads>(row, active, [&](int32_t tile, const float(&logits)[kTilePerLane]) {
#pragma unroll
      for (int i = 0; i < kTilePerLane; ++i) {
        const int32_t token = tile_token(tile, i);
        const uint64_t weight = token < row.vocab_size ? weight_of(token, logits[i]) : 0;
        if (weight > 0) visit(weight, surprise_of(logits[i]));
      }
    });
  };
  // Sums of weight times surprise in two parts, of which neither leaves 64 bits: weights are at
  // most 2^40, surprises below 2^22, tokens at most 2^20.
  constexpr int kPartBits = 20;
  uint64_t sums[3] = {};
  for_weighty([&](uint64_t weight, int32_t surprise) {
    sums[0] += weight;
    sums[1] += (weight & ((1u << kPartBits) - 1)) * static_cast<uint32_t>(surprise);
    sums[2] += (weight >> kPartBits) * static_cast<uint32_t>(surprise);
  });
  uint64_t totals[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) block_exclusive_scan<kThreads>(sums[i], scratch, &totals[i]);
  TypicalCut cut;
  const auto weighted = (static_cast<unsigned __int128>(totals[2]) << kPartBits) + totals[1];
  cut.mean = static_cast<int32_t>(weighted / totals[0]);
  uint64_t need = ceil_fraction(fixed, totals[0]);
  need = need > 1 ? need : 1;
  // The distance at which the sum reaches the need: a digit a pass, the higher one first.
  uint64_t before_digit = 0;
  uint64_t inside = 0;
  int32_t prefix = 0;
#pragma unroll 1
  for (int shift = kDigitBits; shift >= 0; shift -= kDigitBits) {
    __syncthreads();
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) {
      scratch.histogram.low[bin] = scratch.histogram.high[bin] = 0;
    }
    __syncthreads();
    for_weighty([&](uint64_t weight, int32_t surprise) {
      const int32_t distance = TypicalCut::distance_of(surprise, cut.mean);
      if (shift == 0 && distance >> kDigitBits != prefix) return;
      add_to_bin(scratch.histogram, static_cast<uint32_t>(distance >> shift) & (kBins - 1), weight);
    });
    __syncthreads();
    const int lowest = static_cast<int>(threadIdx.x) * kBinsPerThread;
    uint64_t bins[kBinsPerThread];
    uint64_t local = 0;
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      bins[i] = static_cast<uint64_t>(scratch.histogram.high[lowest + i]) << 32 |
                scratch.histogram.low[lowest + i];
      local += bins[i];
    }
    uint64_t all = 0;
    uint64_t before = before_digit + block_exclusive_scan<kThreads>(local, scratch, &all);
    if (before < need && before + local >= need) {
      bool found = false;
#pragma unroll
      for (int i = 0; i < kBinsPerThread; ++i) {
        if (!found && before + bins[i] >= need) {
          found = true;
          scratch.found_index = lowest + i;
          scratch.found_value = bins[i];
          scratch.found_sum = before;
        }
        before += bins[i];
      }
    }
    __syncthreads();
    prefix = prefix << kDigitBits | scratch.found_index;
    inside = scratch.found_value;
    before_digit = scratch.found_sum;
  }
  cut.distance = prefix;
  const uint64_t rest = need - before_digit;
  if (rest < inside) {
    const auto at_distance = [&](int32_t token, float logit) -> uint64_t {
      const uint64_t weight = weight_of(token, logit);
      if (weight == 0) return 0;
      return TypicalCut::distance_of(surprise_of(logit), cut.mean) == cut.distance ? weight : 0;
    };
    cut.token = locate<kThreads>(row, tiles, scratch, active, at_distance,
                                 [&](uint64_t) { return rest - 1; });
  }
  return cut;
}

// The largest of a value of every thread.
template <int kThreads>
__device__ __forceinline__ uint64_t block_largest(uint64_t value, Scratch& scratch) {
  constexpr int kWarps = kThreads / 32;
  const auto over_lanes = [](uint64_t most) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const uint64_t other = __shfl_xor_sync(~0u, most, offset);
      most = most > other ? most : other;
    }
    return most;
  };
  value = over_lanes(value);
  __syncthreads();
  if (lane_index() == 0) scratch.warp_values[warp_index()] = value;
  __syncthreads();
  return over_lanes(lane_index() < kWarps ? scratch.warp_values[lane_index()] : 0);
}

// The k best tokens by logit, ties by lower id; values are keys. 1 <= k <= vocab_size; tiles.keys
// is set.
template <int kThreads>
__device__ __forceinline__ Cut cut_top_k(const LogitRow& row, const Tiles& tiles, Scratch& scratch,
                                         int32_t k) {
  // The k-th best of what each thread's tiles have at most is a lower bound that leaves little to
  // look at: bit by bit, one barrier each.
  uint32_t most = 0;
  for (int32_t tile = static_cast<int32_t>(threadIdx.x); tile < row.num_tiles; tile += kThreads) {
    most = most > tiles.keys[tile] ? most : tiles.keys[tile];
  }
  uint32_t floor = 0;
  if (k <= kThreads && k <= row.num_tiles) {
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
      if (__syncthreads_count(most >= (floor | bit)) >= k) floor |= bit;
    }
  }
  return radix_cut<kThreads, 32>(
      row, tiles, scratch, floor > 1 ? floor : 1,
      [&](int32_t tile) -> uint64_t { return tiles.keys[tile]; },
      [](int32_t, float logit) -> uint64_t { return logit_key(logit); },
      [](uint64_t) -> uint64_t { return 1; }, [&](uint64_t) { return static_cast<uint64_t>(k); });
}

}  // namespace sluice::kernels::cuda
