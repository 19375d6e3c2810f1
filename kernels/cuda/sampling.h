#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/core/buffer.h"
#include "kernels/core/sampler_slots.h"
#include "kernels/cuda/sampling_kernels.h"
#include "kernels/ops.h"

namespace sluice::kernels::cuda {

// Logits on the device.
struct DeviceLogits {
  const float* values = nullptr;  // [num_rows, stride], the first V of each row count
  int64_t num_rows = 0;
  int64_t stride = 0;  // rows that begin at multiples of 16 bytes are read faster
};

// The sampler slots of one engine on one device and the memory that sampling needs: Sample of
// kernels/ops.h, equal to the host's token for token given equal logits. Engine thread only; the
// device is the current one at Create. Everything goes to one stream and nothing waits but Collect
// (and a Reset that finds four others still on their way).
//
//   sampler->Reset(slot, params, prompt, output);
//   sampler->Launch(logits, args, previous_tokens);   // step n
//   sampler->Launch(...);                             // step n + 1, before the host knows step n
//   sampler->Collect(out);                            // step n
//
// Device memory: V * (8 num_slots + 4 max_rows) bytes for counts and adjusted logits, and
// 4 * max_context * num_slots for the tokens that penalties count; the rest is small.
class DeviceSampler {
 public:
  struct Shape {
    int num_slots = 0;
    int64_t vocab_size = 0;   // V, at most 2^20
    int max_rows = 0;         // of a launch
    int64_t max_context = 0;  // tokens of the longest sequence; penalties count no more
  };

  // INVALID_ARGUMENT for a shape that cannot be; RESOURCE_EXHAUSTED when memory is short.
  static absl::StatusOr<std::unique_ptr<DeviceSampler>> Create(const Shape& shape,
                                                               cudaStream_t stream);
  ~DeviceSampler();
  DeviceSampler(const DeviceSampler&) = delete;
  DeviceSampler& operator=(const DeviceSampler&) = delete;

  // Puts a sequence into `slot`, after what is launched and before what will be. INVALID_ARGUMENT
  // for more than kMaxBiasTokens or kMaxBannedTokens of the vocabulary, bias that is not in
  // strictly ascending ids, and a penalised sequence longer than max_context.
  absl::Status Reset(int slot, const SamplerParams& params, std::span<const int32_t> prompt,
                     std::span<const int32_t> output);

  // Samples args.rows and advances their slots, asynchronously. previous_tokens, on the device or
  // null, receives each row's token at its logit row, 0 where there is none. At most two launches
  // wait to be collected. args.mask is on the host and may change once Launch returns; no more mask
  // rows than max_rows.
  absl::Status Launch(const DeviceLogits& logits, const SampleArgs& args, int32_t* previous_tokens);

  // The tokens of the oldest launch that was not collected, in the order of its rows; waits for it.
  absl::Status Collect(std::span<SampledToken> out);

  // Marks that a step begins, ahead of whatever of it goes to the stream. A step ends with the copy
  // of its launch's tokens to the host.
  absl::Status MarkStep();
  // By the device's clock, from the end of the step before to the begin of the step last collected:
  // how long it had nothing to do, about a microsecond when it went on at once. Of every eighth
  // step alone, since a mark in the stream costs about as much; none either when the step before
  // launched nothing.
  std::optional<double> idle_seconds() const { return idle_seconds_; }

  // Launch in its parts, for CUDA graphs. Upload checks and copies the rows to a fixed address,
  // EnqueueGreedy and EnqueueGeneral are kernels alone, Download starts the copy that Collect waits
  // for. A graph holds EnqueueGreedy with num_rows rounded up: what it does beyond the rows of the
  // latest Upload is nothing. EnqueueGeneral depends on the latest Upload and is not for graphs.
  absl::Status Upload(const DeviceLogits& logits, const SampleArgs& args);
  absl::Status EnqueueGreedy(const DeviceLogits& logits, int num_rows, int32_t* previous_tokens);
  absl::Status EnqueueGeneral(const DeviceLogits& logits, int32_t* previous_tokens);
  absl::Status Download();
  // All rows are plain arg-max: temperature below 1e-5 and nothing else set that could matter, no
  // mask, no log probabilities. EnqueueGreedy serves them.
  bool AllGreedy(const SampleArgs& args) const;

 private:
  // Where a launch's step begins and ends in the stream. One longer than the flights: the end of
  // the step before is still asked for when the next but one is launched.
  struct Mark {
    cudaEvent_t began = nullptr;
    cudaEvent_t done = nullptr;
    uint64_t step = 0;   // as MarkStep counts
    bool begun = false;  // `began` is this step's
  };
  // What one launch leaves for Collect; page-locked memory of its own.
  struct Flight {
    RowTable* table = nullptr;
    uint32_t* mask = nullptr;
    int32_t* results = nullptr;
    int num_rows = 0;
    bool has_logprobs = false;
    std::vector<int32_t> num_top;
  };
  // One Reset on its way to the device.
  struct Stage {
    cudaEvent_t done = nullptr;
    std::byte* bytes = nullptr;
  };
  static constexpr int kNumFlights = 2;
  static constexpr int kNumMarks = 4;
  static constexpr uint64_t kStepsAMark = 8;
  static constexpr int kNumStages = 4;

  DeviceSampler(const Shape& shape, cudaStream_t stream) : shape_(shape), stream_(stream) {}
  absl::Status Allocate();
  absl::Status ClearSlots();
  absl::Status EndLaunch();  // of the flight at num_launched_
  absl::Status Check(const DeviceLogits& logits, const SampleArgs& args) const;
  absl::Status ResetPenalties(int slot, const SamplerSlot& host, std::span<const int32_t> prompt,
                              std::span<const int32_t> output, std::byte* stage, SlotState* state);
  // Launch of plain arg-max for logit rows 0, 1, ...: one kernel and no copies.
  absl::Status LaunchInOrder(const DeviceLogits& logits, const SampleArgs& args,
                             int32_t* previous_tokens);
  SampleLaunch Describe(const DeviceLogits& logits, int32_t* previous_tokens) const;
  int64_t mask_words() const { return (shape_.vocab_size + 31) / 32; }
  size_t table_bytes(int num_rows) const {
    return sizeof(RowTable) + static_cast<size_t>(num_rows) * sizeof(RowDescriptor);
  }
  size_t tokens_bytes() const;
  size_t history_offset() const;

  const Shape shape_;
  const cudaStream_t stream_;
  int num_multiprocessors_ = 0;
  std::vector<Buffer> memory_;  // owns what the pointers below name

  // On the device.
  SlotArrays slots_;
  RowTable* table_ = nullptr;
  uint32_t* mask_ = nullptr;
  float* adjusted_ = nullptr;
  int32_t* results_ = nullptr;  // tokens [max_rows], then LogprobTerms [max_rows]
  GreedyScratch* greedy_scratch_ = nullptr;
  TokenCount* count_entries_ = nullptr;  // of the Reset at work

  int device_index_ = 0;
  Flight flights_[kNumFlights];
  Mark marks_[kNumMarks];
  uint64_t num_steps_ = 0;
  bool begun_ = false;  // the step at num_steps_ was marked
  std::optional<double> idle_seconds_;
  Stage stages_[kNumStages];
  uint64_t num_launched_ = 0;
  uint64_t num_collected_ = 0;
  uint64_t num_resets_ = 0;
  bool uploaded_ = false;                  // a flight waits for its Download
  bool shared_slots_ = false;              // of the latest Upload
  std::vector<char> plain_;                // by slot: raw arg-max is its sampler
  std::vector<int32_t> last_row_of_slot_;  // scratch of Upload, -1 between calls
};

}  // namespace sluice::kernels::cuda
