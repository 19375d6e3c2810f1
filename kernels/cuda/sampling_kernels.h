#pragma once

// The kernels of the sampler and the plain values that they share with the host.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

#include "kernels/core/sampler_slots.h"
#include "kernels/ops.h"

namespace sluice::kernels::cuda {

// Lists of one slot, at most so many entries.
inline constexpr int kMaxBiasTokens = 1024;
inline constexpr int kMaxBannedTokens = 1024;
// Z stays below 2^60 (kernels/core/sampling_math.h).
inline constexpr int64_t kMaxVocabSize = int64_t{1} << 20;

// What one slot holds on the device: its parameters as the kernels want them, and what advances.
struct SlotState {
  uint64_t seed = 0;
  // Fractions as 53 bits of fixed point; see CeilFraction.
  uint64_t typical_p_fixed = 0;
  uint64_t top_p_fixed = 0;
  uint64_t min_p_fixed = 0;
  uint32_t sequence_index = 0;
  float inverse_temperature = 1.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t top_k = 0;   // 0: all
  int32_t window = 0;  // tokens that penalties see; 0: all
  int32_t min_tokens = 0;
  int32_t num_bias = 0;
  int32_t num_banned = 0;
  int32_t num_output = 0;     // advances
  int32_t history_size = 0;   // advances
  int32_t history_begin = 0;  // advances: the oldest entry once the window is full
  bool greedy = false;
  bool has_typical_p = false;
  bool has_top_p = false;
  bool penalized = false;
};

// How often the penalty window of a slot holds a token.
struct WindowCount {
  int32_t seen;    // in prompt and output
  int32_t output;  // in the output alone
};

inline constexpr int32_t kHistoryOutput = int32_t{1} << 30;  // flag beside the token's id

// The device arrays of all slots.
struct SlotArrays {
  SlotState* states = nullptr;    // [slots]
  TokenBias* bias = nullptr;      // [slots, kMaxBiasTokens] ascending ids
  int32_t* banned = nullptr;      // [slots, kMaxBannedTokens] ascending ids
  WindowCount* counts = nullptr;  // [slots, V]; of penalised slots only
  // [slots, history_capacity]: with a window the ring of its tokens, | kHistoryOutput; without one
  // each token seen, once.
  int32_t* history = nullptr;
  int64_t vocab_size = 0;
  int64_t history_capacity = 0;
};

// One row of a launch; see SampleRow.
struct RowDescriptor {
  int32_t logit_row;
  int32_t slot;
  int32_t position;
  int32_t num_top;
  int32_t forced_token;
  int32_t mask_row;
  int32_t next_of_slot;  // the next row of the same slot, -1: none
  uint32_t flags;
};
inline constexpr uint32_t kAloneInSlot = 1;  // no other row of the launch has this slot
inline constexpr uint32_t kFirstOfSlot = 2;  // of several rows with this slot

// What Upload writes, at one address for ever: CUDA graphs hold it.
struct RowTable {
  int32_t num_rows;
  int32_t unused[3];
  // RowDescriptor [max_rows] follows.
  __host__ __device__ const RowDescriptor* rows() const {
    return reinterpret_cast<const RowDescriptor*>(this + 1);
  }
};

// The few numbers from which the host makes the log probabilities of a row (LogprobOf).
struct LogprobTerms {
  uint64_t total;  // Z of the raw logits at temperature 1
  float max;       // of the raw logits
  float logit;     // raw, of the row's token
  int32_t top_tokens[kMaxTopLogprobs];
  float top_logits[kMaxTopLogprobs];
};

// What a launch reads and writes, all on the device.
struct SampleLaunch {
  const float* logits = nullptr;  // [num_logit_rows, stride]
  int64_t stride = 0;
  const RowTable* table = nullptr;  // LaunchGreedy: null when row i is of logit row i
  const uint32_t* mask = nullptr;   // [mask rows, ceil(V / 32)]
  SlotArrays slots;
  float* adjusted = nullptr;  // [max_rows, adjusted_stride] scratch
  int64_t adjusted_stride = 0;
  int32_t* tokens = nullptr;           // [max_rows]; -1: not finite
  LogprobTerms* logprobs = nullptr;    // [max_rows]; of rows that ask
  int32_t* previous_tokens = nullptr;  // [num_logit_rows] or null
};

// Per row, zero between launches: the best key so far and the blocks that are done.
struct GreedyScratch {
  unsigned long long best;
  uint32_t num_done;
  uint32_t unused;
};

// Configuration of a launch, a pure function of the problem.
struct SamplingConfig {
  int32_t threads = 0;        // of a block that samples one row: 512 or 1024
  int32_t num_tiles = 0;      // of a row
  int64_t shared_bytes = 0;   // dynamic
  int32_t greedy_chunks = 0;  // blocks that share a row's arg-max
};
SamplingConfig ConfigureSampling(int num_rows, int64_t vocab_size, int num_multiprocessors);

// Columns of a row of SampleLaunch::adjusted.
int64_t AdjustedStride(int64_t vocab_size);

// Arg-max of raw logits for rows of plain greedy slots; blocks for num_rows rows, of which those
// beyond the table's return at once. `scratch` is [num_rows]. Nothing but one kernel: may be
// captured in a graph.
absl::Status LaunchGreedy(const SampleLaunch& launch, GreedyScratch* scratch, int num_rows,
                          cudaStream_t stream);

// All parameters, any rows. With `shared_slots`, several rows may name one slot.
absl::Status LaunchSample(const SampleLaunch& launch, int num_rows, bool shared_slots,
                          int num_multiprocessors, cudaStream_t stream);

// counts[entries[i].token] = the counts of entries[i] for one slot; entries on the device.
absl::Status LaunchFillCounts(const TokenCount* entries, int num_entries, WindowCount* counts,
                              cudaStream_t stream);

}  // namespace sluice::kernels::cuda
