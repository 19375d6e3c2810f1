#pragma once

// One row of logits, sampled by one thread block; see numerics.md, "Sampling without rounding", and
// kernels/core/sampling_math.h for the definition.

#include <cstdint>

#include "kernels/cuda/sampling_select.cuh"

namespace sluice::kernels::cuda {

// The lists and counts of one slot.
struct SlotView {
  const SlotState* state;
  const TokenBias* bias;
  const int32_t* banned;
  const WindowCount* counts;
  const int32_t* history;

  __device__ __forceinline__ bool bans() const {
    return state->num_output < state->min_tokens && state->num_banned > 0;
  }
  __device__ __forceinline__ bool penalizes() const {
    return state->penalized && state->history_size > 0;
  }
};

__device__ __forceinline__ SlotView slot_view(const SlotArrays& slots, int32_t slot) {
  return {slots.states + slot, slots.bias + static_cast<int64_t>(slot) * kMaxBiasTokens,
          slots.banned + static_cast<int64_t>(slot) * kMaxBannedTokens,
          slots.counts + slot * slots.vocab_size, slots.history + slot * slots.history_capacity};
}

__device__ __forceinline__ bool mask_allows(const uint32_t* mask, int32_t token) {
  return (mask[token >> 5] >> (token & 31) & 1u) != 0;
}

// A token's logit after mask, bans, bias and penalties, from the raw one: a token that several
// lists name may be written several times.
__device__ __forceinline__ float adjusted_logit(const LogitRow& raw, const uint32_t* mask,
                                                const SlotView& slot, int32_t token) {
  const SlotState& state = *slot.state;
  float logit = raw.logits[token];
  if (mask != nullptr && !mask_allows(mask, token)) logit = negative_infinity();
  if (slot.bans()) {
    int32_t begin = 0, end = state.num_banned;
    while (begin < end) {
      const int32_t middle = (begin + end) / 2;
      if (slot.banned[middle] < token) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    if (begin < state.num_banned && slot.banned[begin] == token) logit = negative_infinity();
  }
  int32_t begin = 0, end = state.num_bias;
  while (begin < end) {
    const int32_t middle = (begin + end) / 2;
    if (slot.bias[middle].token < token) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  if (begin < state.num_bias && slot.bias[begin].token == token) {
    logit = __fadd_rn(logit, slot.bias[begin].bias);
  }
  if (slot.penalizes()) {
    const WindowCount count = slot.counts[token];
    if (count.seen > 0) logit = penalized_logit(logit, state, count);
  }
  return logit;
}

// Reads a row, sets tiles.keys after the mask, copies the masked row to `adjusted` unless it is
// null. False when a raw logit is not finite. Ends with a barrier.
template <int kThreads>
__device__ __forceinline__ bool scan_row(const LogitRow& raw, const uint32_t* mask, float* adjusted,
                                         const Tiles& tiles) {
  bool sound = true;
  __syncthreads();
  for_tiles<kThreads>(
      raw, [](int32_t) { return true; },
      [&](int32_t tile, float(&logits)[kTilePerLane]) {
        float most = negative_infinity();
#pragma unroll
        for (int i = 0; i < kTilePerLane; i += 4) {
          const int32_t token = tile_token(tile, i);
          uint32_t allowed = 15;
          if (mask != nullptr && token < raw.vocab_size) allowed = mask[token >> 5] >> (token & 31);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sound &= token + j >= raw.vocab_size || is_finite(logits[i + j]);
            if ((allowed >> j & 1u) == 0) logits[i + j] = negative_infinity();
            most = fmaxf(most, logits[i + j]);
          }
          if (adjusted != nullptr) {
            *reinterpret_cast<float4*>(adjusted + token) =
                make_float4(logits[i], logits[i + 1], logits[i + 2], logits[i + 3]);
          }
        }
        const uint32_t key = __reduce_max_sync(~0u, logit_key(most));
        if (lane_index() == 0) tiles.keys[tile] = key;
      });
  return __syncthreads_or(!sound) == 0;
}

// Edits the tokens that the slot's lists name and renews the keys of their tiles. False when a
// logit became NaN or +infinity. Ends with a barrier.
template <int kThreads>
__device__ __forceinline__ bool apply_lists(const LogitRow& raw, const uint32_t* mask,
                                            const SlotView& slot, float* adjusted,
                                            const LogitRow& row, const Tiles& tiles) {
  constexpr uint32_t kEdited = ~0u;
  const SlotState& state = *slot.state;
  const int32_t num_banned = slot.bans() ? state.num_banned : 0;
  const int32_t num_history = slot.penalizes() ? state.history_size : 0;
  const int32_t num_edits = num_banned + state.num_bias + num_history;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < num_edits; i += kThreads) {
    int32_t token;
    if (i < num_banned) {
      token = slot.banned[i];
    } else if (i < num_banned + state.num_bias) {
      token = slot.bias[i - num_banned].token;
    } else {
      token = slot.history[i - num_banned - state.num_bias] & ~kHistoryOutput;
    }
    adjusted[token] = adjusted_logit(raw, mask, slot, token);
    tiles.keys[token / kTile] = kEdited;
  }
  __syncthreads();
  bool sound = true;
  for_tiles<kThreads>(
      row, [&](int32_t tile) { return tiles.keys[tile] == kEdited; },
      [&](int32_t tile, const float(&logits)[kTilePerLane]) {
        float most = negative_infinity();
#pragma unroll
        for (int i = 0; i < kTilePerLane; ++i) {
          sound &= logits[i] < __uint_as_float(kHopelessKey & 0x7fffffffu);  // NaN is not
          most = fmaxf(most, logits[i]);
        }
        const uint32_t key = __reduce_max_sync(~0u, logit_key(most));
        __syncwarp();  // all lanes have tested the key
        if (lane_index() == 0) tiles.keys[tile] = key;
      });
  return __syncthreads_or(!sound) == 0;
}

template <int kThreads>
__device__ __forceinline__ uint32_t largest_key(const LogitRow& row, const Tiles& tiles,
                                                Scratch& scratch) {
  uint32_t most = 0;
  for (int32_t tile = static_cast<int32_t>(threadIdx.x); tile < row.num_tiles; tile += kThreads) {
    most = most > tiles.keys[tile] ? most : tiles.keys[tile];
  }
  return block_max<kThreads>(most, scratch);
}

template <int kThreads>
__device__ __forceinline__ int32_t first_of_key(const LogitRow& row, const Tiles& tiles,
                                                Scratch& scratch, uint32_t key) {
  return locate<kThreads>(
      row, tiles, scratch, [&](int32_t tile) { return tiles.keys[tile] == key; },
      [&](int32_t, float logit) -> uint64_t { return logit_key(logit) == key ? 1 : 0; },
      [](uint64_t) -> uint64_t { return 0; });
}

// Draws from the adjusted row, whose largest logit has the key `max_key` above -infinity.
template <int kThreads>
__device__ __forceinline__ int32_t draw_token(const LogitRow& row, const Tiles& tiles,
                                              Scratch& scratch, const SlotState& state,
                                              uint32_t max_key, int32_t position) {
  const float max = key_logit(max_key);
  const float inverse_temperature = state.inverse_temperature;
  Cut by_logit;
  if (state.top_k > 0 && state.top_k < row.vocab_size) {
    by_logit = cut_top_k<kThreads>(row, tiles, scratch, state.top_k);
  }
  const auto bound = [&](int32_t tile) -> uint64_t {
    const uint32_t key = tiles.keys[tile];
    return key < by_logit.value ? 0 : weight_bound(key_logit(key), max, inverse_temperature);
  };
  const auto surprise_of = [&](float logit) { return surprise(logit, max, inverse_temperature); };
  const auto weight_by_logit = [&](int32_t token, float logit) -> uint64_t {
    if (!by_logit.keeps(token, logit_key(logit))) return 0;
    return logit_weight(logit, max, inverse_temperature);
  };
  TypicalCut typical;
  uint64_t best_weight = kWeightOne;
  if (state.has_typical_p) {
    typical = cut_typical<kThreads>(row, tiles, scratch, state.typical_p_fixed, bound,
                                    weight_by_logit, surprise_of);
    best_weight = 0;
  }
  const auto weight = [&](int32_t token, float logit) -> uint64_t {
    const uint64_t w = weight_by_logit(token, logit);
    return w > 0 && typical.keeps(token, surprise_of(logit)) ? w : 0;
  };
  if (state.has_typical_p && state.min_p_fixed > 0) {
    for_tiles<kThreads>(
        row, [&](int32_t tile) { return bound(tile) > 0; },
        [&](int32_t tile, const float(&logits)[kTilePerLane]) {
#pragma unroll
          for (int i = 0; i < kTilePerLane; ++i) {
            const int32_t token = tile_token(tile, i);
            const uint64_t w = token < row.vocab_size ? weight(token, logits[i]) : 0;
            best_weight = best_weight > w ? best_weight : w;
          }
        });
    best_weight = block_largest<kThreads>(best_weight, scratch);
  }
  Cut by_weight;
  if (state.has_top_p) {
    by_weight = radix_cut<kThreads, 41>(
        row, tiles, scratch, 1, bound, weight, [](uint64_t value) { return value; },
        [&](uint64_t total) {
          const uint64_t need = ceil_fraction(state.top_p_fixed, total);
          return need > 1 ? need : 1;
        });
  }
  const uint64_t of_min_p = ceil_fraction(state.min_p_fixed, best_weight);
  uint64_t least = of_min_p > 1 ? of_min_p : 1;
  least = least > by_weight.value ? least : by_weight.value;
  const uint64_t bits = sample_bits(state.seed, state.sequence_index, position);
  return locate<kThreads>(
      row, tiles, scratch, [&](int32_t tile) { return bound(tile) >= least; },
      [&](int32_t token, float logit) -> uint64_t {
        const uint64_t w = weight(token, logit);
        return w >= least && by_weight.keeps(token, w) ? w : 0;
      },
      [&](uint64_t total) { return draw_target(bits, total); });
}

// Fills in all but `logit`, from the raw row and its tiles.keys.
template <int kThreads>
__device__ __forceinline__ void rank_raw(const LogitRow& raw, const Tiles& tiles, Scratch& scratch,
                                         int32_t num_top, LogprobTerms* terms) {
  const int thread = static_cast<int>(threadIdx.x);
  int32_t count = num_top < raw.vocab_size ? num_top : raw.vocab_size;
  count = count > 1 ? count : 1;  // the best one is the maximum in any case
  const Cut kept = cut_top_k<kThreads>(raw, tiles, scratch, count);
  __syncthreads();
  if (thread == 0) scratch.num_listed = 0;
  __syncthreads();
  for_tiles<kThreads>(
      raw, [&](int32_t tile) { return tiles.keys[tile] >= kept.value; },
      [&](int32_t tile, const float(&logits)[kTilePerLane]) {
#pragma unroll
        for (int i = 0; i < kTilePerLane; ++i) {
          const int32_t token = tile_token(tile, i);
          const uint32_t key = logit_key(logits[i]);
          if (token >= raw.vocab_size || !kept.keeps(token, key)) continue;
          const uint32_t slot = atomicAdd(&scratch.num_listed, 1u);
          scratch.list.values[slot] = key;
          scratch.list.tokens[slot] = token;
        }
      });
  __syncthreads();
  if (thread < count) {
    const uint64_t key = scratch.list.values[thread];
    const int32_t token = scratch.list.tokens[thread];
    int32_t rank = 0;
    for (int32_t i = 0; i < count; ++i) {
      rank += scratch.list.values[i] > key ||
              (scratch.list.values[i] == key && scratch.list.tokens[i] < token);
    }
    const float logit = raw.logits[token];
    terms->top_tokens[rank] = token;
    terms->top_logits[rank] = logit;
    if (rank == 0) terms->max = logit;
  }
  const float max = key_logit(largest_key<kThreads>(raw, tiles, scratch));
  uint64_t sum = 0;
  for_tiles<kThreads>(
      raw, [&](int32_t tile) { return weight_bound(key_logit(tiles.keys[tile]), max, 1.0f) > 0; },
      [&](int32_t tile, const float(&logits)[kTilePerLane]) {
#pragma unroll
        for (int i = 0; i < kTilePerLane; ++i) sum += logit_weight(logits[i], max, 1.0f);
      });
  uint64_t total = 0;
  block_exclusive_scan<kThreads>(sum, scratch, &total);
  if (thread == 0) terms->total = total;
}

// The token of a row, -1 when there is none. Fills in `terms` but for `logit` when num_top >= 0.
template <int kThreads>
__device__ __forceinline__ int32_t sample_token(const LogitRow& raw, const RowDescriptor& row,
                                                const SlotView& slot, const uint32_t* mask,
                                                float* adjusted, const Tiles& tiles,
                                                Scratch& scratch, LogprobTerms* terms) {
  const SlotState& state = *slot.state;
  const bool forced = row.forced_token >= 0;
  const bool adjusts =
      !forced && (mask != nullptr || slot.bans() || state.num_bias > 0 || slot.penalizes());
  if (row.num_top >= 0 || !adjusts) {
    if (!scan_row<kThreads>(raw, nullptr, nullptr, tiles)) return -1;
    if (row.num_top >= 0) rank_raw<kThreads>(raw, tiles, scratch, row.num_top, terms);
    if (forced) return row.forced_token;
  }
  LogitRow chosen_from = raw;
  if (adjusts) {
    if (!scan_row<kThreads>(raw, mask, adjusted, tiles)) return -1;
    chosen_from.logits = adjusted;
    chosen_from.aligned = true;
    if (!apply_lists<kThreads>(raw, mask, slot, adjusted, chosen_from, tiles)) return -1;
  }
  const uint32_t max_key = largest_key<kThreads>(chosen_from, tiles, scratch);
  if (max_key <= kLowestKey) return -1;
  if (state.greedy) return first_of_key<kThreads>(chosen_from, tiles, scratch, max_key);
  return draw_token<kThreads>(chosen_from, tiles, scratch, state, max_key, row.position);
}

// One sampled token more in a slot, by one thread.
__device__ __forceinline__ void advance_slot(const SlotArrays& slots, int32_t slot, int32_t token) {
  SlotState& state = slots.states[slot];
  ++state.num_output;
  if (!state.penalized) return;
  WindowCount* counts = slots.counts + slot * slots.vocab_size;
  int32_t* history = slots.history + slot * slots.history_capacity;
  if (state.window > 0) {
    ++counts[token].seen;
    ++counts[token].output;
    if (state.history_size < state.window) {
      history[state.history_size++] = token | kHistoryOutput;
      return;
    }
    const int32_t oldest = history[state.history_begin];
    --counts[oldest & ~kHistoryOutput].seen;
    if ((oldest & kHistoryOutput) != 0) --counts[oldest & ~kHistoryOutput].output;
    history[state.history_begin] = token | kHistoryOutput;
    state.history_begin = state.history_begin + 1 == state.window ? 0 : state.history_begin + 1;
    return;
  }
  if (counts[token].seen == 0) {
    if (state.history_size == slots.history_capacity) return;  // beyond the longest context
    history[state.history_size++] = token;
  }
  ++counts[token].seen;
  ++counts[token].output;
}

}  // namespace sluice::kernels::cuda
