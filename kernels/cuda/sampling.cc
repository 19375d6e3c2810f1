#include "kernels/cuda/sampling.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/sampling_math.h"
#include "kernels/cuda/device.h"

namespace sluice::kernels::cuda {
namespace {

absl::Status Invalid(const std::string& what) {
  return absl::InvalidArgumentError("device sampler: " + what);
}

// Where the pieces of a Stage begin. All sizes are multiples of 8.
constexpr size_t kStageBias = (sizeof(SlotState) + 15) / 16 * 16;
constexpr size_t kStageBanned = kStageBias + kMaxBiasTokens * sizeof(TokenBias);
constexpr size_t kStageEntries = kStageBanned + kMaxBannedTokens * sizeof(int32_t);

SlotState InitialState(const SamplerSlot& host, size_t num_output) {
  const SamplerParams& params = host.params();
  SlotState state;
  state.seed = params.seed;
  state.sequence_index = params.sequence_index;
  state.greedy = host.greedy();
  state.inverse_temperature = state.greedy ? 1.0f : 1.0f / params.temperature;
  state.top_k = params.top_k;
  state.has_typical_p = params.typical_p < 1.0f;
  state.has_top_p = params.top_p < 1.0f;
  state.typical_p_fixed = FixedFraction(params.typical_p);
  state.top_p_fixed = FixedFraction(params.top_p);
  state.min_p_fixed = FixedFraction(std::min(params.min_p, 1.0f));
  state.repetition_penalty = params.repetition_penalty;
  state.presence_penalty = params.presence_penalty;
  state.frequency_penalty = params.frequency_penalty;
  state.penalized = params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
                    params.frequency_penalty != 0.0f;
  state.min_tokens = params.min_tokens;
  state.num_output = static_cast<int32_t>(num_output);
  return state;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceSampler>> DeviceSampler::Create(const Shape& shape,
                                                                     cudaStream_t stream) {
  if (shape.num_slots < 1 || shape.vocab_size < 1 || shape.vocab_size > kMaxVocabSize ||
      shape.max_rows < 1 || shape.max_rows > 65535 || shape.max_context < 1) {
    return Invalid("expected at least one slot and token of context, 1 to 65535 rows and a " +
                   std::string("vocabulary of 1 to ") + std::to_string(kMaxVocabSize) + ", got " +
                   std::to_string(shape.num_slots) + " slots, " +
                   std::to_string(shape.max_context) + " tokens, " +
                   std::to_string(shape.max_rows) + " rows and a vocabulary of " +
                   std::to_string(shape.vocab_size));
  }
  std::unique_ptr<DeviceSampler> sampler(new DeviceSampler(shape, stream));
  if (absl::Status status = sampler->Allocate(); !status.ok()) return status;
  return sampler;
}

size_t DeviceSampler::tokens_bytes() const {
  return (static_cast<size_t>(shape_.max_rows) * sizeof(int32_t) + 15) / 16 * 16;
}

size_t DeviceSampler::history_offset() const {
  const size_t entries = static_cast<size_t>(slots_.history_capacity) * sizeof(TokenCount);
  return kStageEntries + (entries + 15) / 16 * 16;
}

absl::Status DeviceSampler::Allocate() {
  const size_t num_slots = static_cast<size_t>(shape_.num_slots);
  const size_t vocab_size = static_cast<size_t>(shape_.vocab_size);
  const size_t max_rows = static_cast<size_t>(shape_.max_rows);
  // Two launches ahead may each add a token to a sequence that has ended.
  slots_.history_capacity = shape_.max_context + 2;
  slots_.vocab_size = shape_.vocab_size;
  const size_t capacity = static_cast<size_t>(slots_.history_capacity);
  const size_t result_bytes = tokens_bytes() + max_rows * sizeof(LogprobTerms);
  const size_t mask_bytes = max_rows * static_cast<size_t>(mask_words()) * sizeof(uint32_t);

  int device = 0;
  absl::Status status = ToStatus(cudaGetDevice(&device), "the sampler's device");
  if (status.ok()) {
    status = ToStatus(
        cudaDeviceGetAttribute(&num_multiprocessors_, cudaDevAttrMultiProcessorCount, device),
        "the sampler's device");
  }
  const auto take = [&]<typename T>(absl::StatusOr<Buffer> buffer, T** pointer) {
    if (!status.ok()) return;
    status = buffer.status();
    if (!status.ok()) return;
    *pointer = buffer->as<T>();
    memory_.push_back(std::move(*buffer));
  };
  const auto on_device = [&]<typename T>(size_t bytes, T** pointer) {
    if (status.ok()) take(AllocateOnDevice(device, bytes), pointer);
  };
  const auto pinned = [&]<typename T>(size_t bytes, T** pointer) {
    if (status.ok()) take(AllocatePinned(bytes), pointer);
  };
  const auto event = [&](cudaEvent_t* made, unsigned flags = cudaEventDisableTiming) {
    if (!status.ok()) return;
    status = ToStatus(cudaEventCreateWithFlags(made, flags), "a sampler's event");
  };
  device_index_ = device;
  on_device(num_slots * sizeof(SlotState), &slots_.states);
  on_device(num_slots * kMaxBiasTokens * sizeof(TokenBias), &slots_.bias);
  on_device(num_slots * kMaxBannedTokens * sizeof(int32_t), &slots_.banned);
  on_device(num_slots * vocab_size * sizeof(WindowCount), &slots_.counts);
  on_device(num_slots * capacity * sizeof(int32_t), &slots_.history);
  on_device(table_bytes(shape_.max_rows), &table_);
  on_device(mask_bytes, &mask_);
  on_device(max_rows * static_cast<size_t>(AdjustedStride(shape_.vocab_size)) * sizeof(float),
            &adjusted_);
  on_device(result_bytes, &results_);
  on_device(max_rows * sizeof(GreedyScratch), &greedy_scratch_);
  on_device(capacity * sizeof(TokenCount), &count_entries_);
  for (Flight& flight : flights_) {
    pinned(table_bytes(shape_.max_rows), &flight.table);
    pinned(mask_bytes, &flight.mask);
    pinned(result_bytes, &flight.results);
    flight.num_top.resize(max_rows);
  }
  for (Mark& mark : marks_) {
    event(&mark.began, cudaEventDefault);
    event(&mark.done, cudaEventDefault);
  }
  for (Stage& stage : stages_) {
    pinned(history_offset() + capacity * sizeof(int32_t), &stage.bytes);
    event(&stage.done);
  }
  if (!status.ok()) return status;
  plain_.assign(num_slots, 0);
  last_row_of_slot_.assign(num_slots, -1);
  return ClearSlots();
}

absl::Status DeviceSampler::ClearSlots() {
  // What a slot holds before its first Reset. In the sampler's stream: a plain cudaMemcpy from
  // pageable memory returns before the bytes have arrived, and Reset could overtake them.
  const std::vector<SlotState> neutral(static_cast<size_t>(shape_.num_slots));
  absl::Status status =
      ToStatus(cudaMemcpyAsync(slots_.states, neutral.data(), neutral.size() * sizeof(SlotState),
                               cudaMemcpyHostToDevice, stream_),
               "the sampler's slots");
  if (!status.ok()) return status;
  return ToStatus(cudaStreamSynchronize(stream_), "the sampler's slots");
}

DeviceSampler::~DeviceSampler() {
  // Nothing may be freed under a kernel or a copy; an error here was reported by a call before.
  cudaStreamSynchronize(stream_);
  for (Mark& mark : marks_) {
    if (mark.began != nullptr) cudaEventDestroy(mark.began);
    if (mark.done != nullptr) cudaEventDestroy(mark.done);
  }
  for (Stage& stage : stages_) {
    if (stage.done != nullptr) cudaEventDestroy(stage.done);
  }
}

absl::Status DeviceSampler::Reset(int slot, const SamplerParams& params,
                                  std::span<const int32_t> prompt,
                                  std::span<const int32_t> output) {
  SLUICE_KERNEL_CHECK(slot >= 0 && slot < shape_.num_slots, "the slot exists");
  // The host's slot filters the lists and counts the window: one meaning for all backends.
  SamplerSlot host;
  host.Reset(params, prompt, output, shape_.vocab_size);
  const std::vector<TokenBias>& bias = host.params().bias;
  std::vector<int32_t> banned = host.params().banned_until_min;
  std::sort(banned.begin(), banned.end());
  banned.erase(std::unique(banned.begin(), banned.end()), banned.end());
  if (bias.size() > kMaxBiasTokens || banned.size() > kMaxBannedTokens) {
    return Invalid("expected at most " + std::to_string(kMaxBiasTokens) + " biased and " +
                   std::to_string(kMaxBannedTokens) + " banned tokens, got " +
                   std::to_string(bias.size()) + " and " + std::to_string(banned.size()));
  }
  for (size_t i = 1; i < bias.size(); ++i) {
    if (bias[i - 1].token < bias[i].token) continue;
    return Invalid("bias: expected strictly ascending ids, got " + std::to_string(bias[i].token) +
                   " after " + std::to_string(bias[i - 1].token));
  }
  SlotState state = InitialState(host, output.size());
  state.num_bias = static_cast<int32_t>(bias.size());
  state.num_banned = static_cast<int32_t>(banned.size());

  Stage& stage = stages_[num_resets_ % kNumStages];
  absl::Status status = ToStatus(cudaSetDevice(device_index_), "choosing the device");
  if (status.ok()) {
    status = ToStatus(cudaEventSynchronize(stage.done), "waiting for a sampler's slot");
  }
  const auto send = [&](void* to, size_t offset, const void* from, size_t bytes) {
    if (!status.ok() || bytes == 0) return;
    std::memcpy(stage.bytes + offset, from, bytes);
    status =
        ToStatus(cudaMemcpyAsync(to, stage.bytes + offset, bytes, cudaMemcpyHostToDevice, stream_),
                 "a sampler's slot");
  };
  if (status.ok() && state.penalized) {
    status = ResetPenalties(slot, host, prompt, output, stage.bytes, &state);
  }
  send(slots_.bias + static_cast<int64_t>(slot) * kMaxBiasTokens, kStageBias, bias.data(),
       bias.size() * sizeof(TokenBias));
  send(slots_.banned + static_cast<int64_t>(slot) * kMaxBannedTokens, kStageBanned, banned.data(),
       banned.size() * sizeof(int32_t));
  send(slots_.states + slot, 0, &state, sizeof(state));
  if (!status.ok()) return status;
  plain_[static_cast<size_t>(slot)] = state.greedy && !state.penalized && bias.empty() &&
                                      (banned.empty() || state.num_output >= state.min_tokens);
  ++num_resets_;
  return ToStatus(cudaEventRecord(stage.done, stream_), "a sampler's slot");
}

// Counts and history of a penalised slot; sets the history's fields of `state`.
absl::Status DeviceSampler::ResetPenalties(int slot, const SamplerSlot& host,
                                           std::span<const int32_t> prompt,
                                           std::span<const int32_t> output, std::byte* stage,
                                           SlotState* state) {
  const size_t total = prompt.size() + output.size();
  if (total > static_cast<size_t>(shape_.max_context)) {
    return Invalid("expected a sequence of at most " + std::to_string(shape_.max_context) +
                   " tokens, got " + std::to_string(total));
  }
  const int32_t window = host.params().penalty_last_n;
  // A window that no sequence fills is none.
  state->window = window > 0 && window < slots_.history_capacity ? window : 0;
  const std::span<const TokenCount> counts = host.counts();
  TokenCount* entries = reinterpret_cast<TokenCount*>(stage + kStageEntries);
  std::copy(counts.begin(), counts.end(), entries);
  int32_t* history = reinterpret_cast<int32_t*>(stage + history_offset());
  int32_t size = 0;
  if (state->window == 0) {
    for (const TokenCount& count : counts) history[size++] = count.token;
  } else {
    const size_t first = total > static_cast<size_t>(window) ? total - window : 0;
    for (size_t i = first; i < total; ++i) {
      const bool is_output = i >= prompt.size();
      history[size++] = is_output ? output[i - prompt.size()] | kHistoryOutput : prompt[i];
    }
  }
  state->history_size = size;

  WindowCount* slot_counts = slots_.counts + slot * shape_.vocab_size;
  constexpr std::string_view kWhat = "the counts of a sampler's slot";
  absl::Status status = ToStatus(
      cudaMemsetAsync(slot_counts, 0, static_cast<size_t>(shape_.vocab_size) * sizeof(WindowCount),
                      stream_),
      kWhat);
  const auto send = [&](void* to, const void* from, size_t bytes) {
    if (!status.ok() || bytes == 0) return;
    status = ToStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), kWhat);
  };
  send(count_entries_, entries, counts.size() * sizeof(TokenCount));
  send(slots_.history + slot * slots_.history_capacity, history,
       static_cast<size_t>(size) * sizeof(int32_t));
  if (!status.ok()) return status;
  return LaunchFillCounts(count_entries_, static_cast<int>(counts.size()), slot_counts, stream_);
}

absl::Status DeviceSampler::Check(const DeviceLogits& logits, const SampleArgs& args) const {
  if (num_launched_ - num_collected_ >= kNumFlights || uploaded_) {
    return absl::FailedPreconditionError(
        "device sampler: expected at most two launches that were not collected");
  }
  if (args.rows.size() > static_cast<size_t>(shape_.max_rows)) {
    return Invalid("expected at most " + std::to_string(shape_.max_rows) + " rows, got " +
                   std::to_string(args.rows.size()));
  }
  if (logits.stride < shape_.vocab_size) {
    return Invalid("expected rows of at least " + std::to_string(shape_.vocab_size) +
                   " logits, got " + std::to_string(logits.stride));
  }
  for (const SampleRow& row : args.rows) {
    SLUICE_KERNEL_CHECK(row.slot >= 0 && row.slot < shape_.num_slots, "the slot exists");
    if (row.logit_row < 0 || row.logit_row >= logits.num_rows) {
      return Invalid("expected a logit row below " + std::to_string(logits.num_rows) + ", got " +
                     std::to_string(row.logit_row));
    }
    if (row.forced_token >= shape_.vocab_size) {
      return Invalid("expected a forced token below " + std::to_string(shape_.vocab_size) +
                     ", got " + std::to_string(row.forced_token));
    }
    if (row.num_top > kMaxTopLogprobs) {
      return Invalid("expected at most " + std::to_string(kMaxTopLogprobs) +
                     " log probabilities a token, got " + std::to_string(row.num_top));
    }
    if (row.mask_row >= 0 && (args.mask == nullptr || row.mask_row >= shape_.max_rows)) {
      return Invalid("a row names mask row " + std::to_string(row.mask_row) + " of " +
                     std::to_string(args.mask == nullptr ? 0 : shape_.max_rows));
    }
  }
  return absl::OkStatus();
}

absl::Status DeviceSampler::Upload(const DeviceLogits& logits, const SampleArgs& args) {
  if (absl::Status status = Check(logits, args); !status.ok()) return status;
  Flight& flight = flights_[num_launched_ % kNumFlights];
  const int num_rows = static_cast<int>(args.rows.size());
  RowDescriptor* rows = reinterpret_cast<RowDescriptor*>(flight.table + 1);
  flight.table->num_rows = num_rows;
  flight.num_rows = num_rows;
  flight.has_logprobs = false;
  shared_slots_ = false;
  int32_t num_masks = 0;
  for (int i = 0; i < num_rows; ++i) {
    const SampleRow& row = args.rows[static_cast<size_t>(i)];
    rows[i] = {row.logit_row,    row.slot,     row.position, row.num_top,
               row.forced_token, row.mask_row, -1,           kAloneInSlot};
    int32_t& last = last_row_of_slot_[static_cast<size_t>(row.slot)];
    if (last >= 0) {
      if (rows[last].flags == kAloneInSlot) rows[last].flags = kFirstOfSlot;
      rows[last].next_of_slot = i;
      rows[i].flags = 0;
      shared_slots_ = true;
    }
    last = i;
    flight.num_top[static_cast<size_t>(i)] = row.num_top;
    flight.has_logprobs |= row.num_top >= 0;
    num_masks = std::max(num_masks, row.mask_row + 1);
  }
  for (const SampleRow& row : args.rows) last_row_of_slot_[static_cast<size_t>(row.slot)] = -1;
  absl::Status status = ToStatus(
      cudaMemcpyAsync(table_, flight.table, table_bytes(num_rows), cudaMemcpyHostToDevice, stream_),
      "the rows to sample");
  if (status.ok() && num_masks > 0) {
    const size_t bytes =
        static_cast<size_t>(num_masks) * static_cast<size_t>(mask_words()) * sizeof(uint32_t);
    std::memcpy(flight.mask, args.mask, bytes);
    status = ToStatus(cudaMemcpyAsync(mask_, flight.mask, bytes, cudaMemcpyHostToDevice, stream_),
                      "the masks of the rows to sample");
  }
  uploaded_ = status.ok();
  return status;
}

SampleLaunch DeviceSampler::Describe(const DeviceLogits& logits, int32_t* previous_tokens) const {
  SampleLaunch launch;
  launch.logits = logits.values;
  launch.stride = logits.stride;
  launch.table = table_;
  launch.mask = mask_;
  launch.slots = slots_;
  launch.adjusted = adjusted_;
  launch.adjusted_stride = AdjustedStride(shape_.vocab_size);
  launch.tokens = results_;
  launch.logprobs =
      reinterpret_cast<LogprobTerms*>(reinterpret_cast<std::byte*>(results_) + tokens_bytes());
  launch.previous_tokens = previous_tokens;
  return launch;
}

absl::Status DeviceSampler::EnqueueGreedy(const DeviceLogits& logits, int num_rows,
                                          int32_t* previous_tokens) {
  if (num_rows < 0 || num_rows > shape_.max_rows) {
    return Invalid("expected at most " + std::to_string(shape_.max_rows) + " rows, got " +
                   std::to_string(num_rows));
  }
  return LaunchGreedy(Describe(logits, previous_tokens), greedy_scratch_, num_rows, stream_);
}

absl::Status DeviceSampler::EnqueueGeneral(const DeviceLogits& logits, int32_t* previous_tokens) {
  SLUICE_KERNEL_CHECK(uploaded_, "rows were uploaded");
  return LaunchSample(Describe(logits, previous_tokens),
                      flights_[num_launched_ % kNumFlights].num_rows, shared_slots_,
                      num_multiprocessors_, stream_);
}

absl::Status DeviceSampler::Download() {
  SLUICE_KERNEL_CHECK(uploaded_, "rows were uploaded");
  uploaded_ = false;
  Flight& flight = flights_[num_launched_ % kNumFlights];
  const size_t num_rows = static_cast<size_t>(flight.num_rows);
  const size_t bytes = flight.has_logprobs ? tokens_bytes() + num_rows * sizeof(LogprobTerms)
                                           : num_rows * sizeof(int32_t);
  absl::Status status = absl::OkStatus();
  if (bytes > 0) {
    status =
        ToStatus(cudaMemcpyAsync(flight.results, results_, bytes, cudaMemcpyDeviceToHost, stream_),
                 "the sampled tokens");
  }
  return status.ok() ? EndLaunch() : status;
}

absl::Status DeviceSampler::EndLaunch() {
  Mark& mark = marks_[num_launched_ % kNumMarks];
  mark.step = num_steps_;
  mark.begun = begun_;
  const absl::Status status = ToStatus(cudaEventRecord(mark.done, stream_), "the sampled tokens");
  if (status.ok()) ++num_launched_;
  return status;
}

bool DeviceSampler::AllGreedy(const SampleArgs& args) const {
  return std::all_of(args.rows.begin(), args.rows.end(), [&](const SampleRow& row) {
    return plain_[static_cast<size_t>(row.slot)] != 0 && row.num_top < 0 && row.forced_token < 0 &&
           row.mask_row < 0;
  });
}

absl::Status DeviceSampler::LaunchInOrder(const DeviceLogits& logits, const SampleArgs& args,
                                          int32_t* previous_tokens) {
  if (absl::Status status = Check(logits, args); !status.ok()) return status;
  Flight& flight = flights_[num_launched_ % kNumFlights];
  flight.num_rows = static_cast<int>(args.rows.size());
  flight.has_logprobs = false;
  std::fill_n(flight.num_top.begin(), args.rows.size(), -1);
  SampleLaunch launch = Describe(logits, previous_tokens);
  launch.table = nullptr;
  launch.tokens = flight.results;  // page-locked: the device writes them there itself
  const absl::Status status = LaunchGreedy(launch, greedy_scratch_, flight.num_rows, stream_);
  return status.ok() ? EndLaunch() : status;
}

absl::Status DeviceSampler::Launch(const DeviceLogits& logits, const SampleArgs& args,
                                   int32_t* previous_tokens) {
  bool in_order = AllGreedy(args);
  for (size_t i = 0; in_order && i < args.rows.size(); ++i) {
    in_order = args.rows[i].logit_row == static_cast<int32_t>(i);
  }
  if (in_order) return LaunchInOrder(logits, args, previous_tokens);
  absl::Status status = Upload(logits, args);
  if (!status.ok()) return status;
  status = AllGreedy(args)
               ? EnqueueGreedy(logits, static_cast<int>(args.rows.size()), previous_tokens)
               : EnqueueGeneral(logits, previous_tokens);
  if (!status.ok()) {
    uploaded_ = false;
    return status;
  }
  return Download();
}

absl::Status DeviceSampler::MarkStep() {
  absl::Status status = ToStatus(cudaSetDevice(device_index_), "choosing the device");
  if (!status.ok()) return status;
  begun_ = ++num_steps_ % kStepsAMark == 0;
  if (!begun_) return status;
  return ToStatus(cudaEventRecord(marks_[num_launched_ % kNumMarks].began, stream_),
                  "a step's begin");
}

absl::Status DeviceSampler::Collect(std::span<SampledToken> out) {
  if (num_collected_ == num_launched_) {
    return absl::FailedPreconditionError("device sampler: there is no launch to collect");
  }
  const Flight& flight = flights_[num_collected_ % kNumFlights];
  if (out.size() != static_cast<size_t>(flight.num_rows)) {
    return Invalid("out: expected " + std::to_string(flight.num_rows) + " entries, got " +
                   std::to_string(out.size()));
  }
  const Mark& mark = marks_[num_collected_ % kNumMarks];
  absl::Status status = ToStatus(cudaEventSynchronize(mark.done), "sampling");
  if (!status.ok()) return status;
  idle_seconds_.reset();
  const Mark& before = marks_[(num_collected_ + kNumMarks - 1) % kNumMarks];
  if (num_collected_ > 0 && mark.begun && mark.step == before.step + 1) {
    float milliseconds = 0.0f;
    status =
        ToStatus(cudaEventElapsedTime(&milliseconds, before.done, mark.began), "a step's begin");
    if (!status.ok()) return status;
    idle_seconds_ = static_cast<double>(milliseconds) * 1e-3;
  }
  ++num_collected_;
  const LogprobTerms* all_terms = reinterpret_cast<const LogprobTerms*>(
      reinterpret_cast<const std::byte*>(flight.results) + tokens_bytes());
  for (size_t i = 0; i < out.size(); ++i) {
    SampledToken& sampled = out[i];
    sampled = {};
    sampled.token = flight.results[i];
    sampled.finite = sampled.token >= 0;
    if (!sampled.finite || flight.num_top[i] < 0) continue;
    const LogprobTerms& terms = all_terms[i];
    sampled.logprob = LogprobOf(terms.logit, terms.max, terms.total);
    const int64_t num_top = std::min<int64_t>(flight.num_top[i], shape_.vocab_size);
    sampled.top.reserve(static_cast<size_t>(num_top));
    for (int64_t j = 0; j < num_top; ++j) {
      sampled.top.push_back(
          {terms.top_tokens[j], LogprobOf(terms.top_logits[j], terms.max, terms.total)});
    }
  }
  return absl::OkStatus();
}

}  // namespace sluice::kernels::cuda
