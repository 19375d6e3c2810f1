#include "kernels/cuda/device.h"
#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/sampling_kernels.h"
#include "kernels/cuda/sampling_row.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr int kGreedyThreads = 256;
constexpr int kGreedyChunk = 8192;  // logits of a block of argmax_chunks
constexpr int kGreedyQuads = kGreedyChunk / (4 * kGreedyThreads);
constexpr unsigned long long kNotFinite = ~0ull;

__device__ __forceinline__ bool aligned_to_quads(const float* logits) {
  return (reinterpret_cast<uintptr_t>(logits) & 15) == 0;
}

// Arg-max of raw logits, ties by lower id; -1 when one is not finite.
//   grid    (ceil(V / 8192), rows), block 256
//   shared  64 bytes
//   bytes   reads 4 V a row, once
// The blocks of a row meet in one 64-bit maximum, which has no order: the key of the logit above
// the id's complement. The last one writes the token and leaves the scratch zero for the next
// launch. Measured: not yet.
__global__ void __launch_bounds__(kGreedyThreads)
    argmax_chunks(SampleLaunch launch, GreedyScratch* scratch) {
  __shared__ unsigned long long warp_best[kGreedyThreads / 32];
  let_next_start();
  wait_for_previous();
  const int row_index = static_cast<int>(blockIdx.y);
  int32_t logit_row = row_index;
  if (launch.table != nullptr) {
    if (row_index >= launch.table->num_rows) return;
    logit_row = launch.table->rows()[row_index].logit_row;
  }
  const float* logits = launch.logits + logit_row * launch.stride;
  const int32_t vocab_size = static_cast<int32_t>(launch.slots.vocab_size);
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * kGreedyChunk;
  const int32_t end = begin + kGreedyChunk < vocab_size ? begin + kGreedyChunk : vocab_size;
  unsigned long long best = 0;
  const auto take = [&](int32_t token, float logit) {
    const unsigned long long key = is_finite(logit)
                                       ? static_cast<unsigned long long>(logit_key(logit)) << 32 |
                                             ~static_cast<uint32_t>(token)
                                       : kNotFinite;
    best = best > key ? best : key;
  };
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  if (aligned_to_quads(logits) && end - begin == kGreedyChunk) {
    // All of a thread's logits are requested before the first is used: 32 KB a block.
    float4 quads[kGreedyQuads];
#pragma unroll
    for (int i = 0; i < kGreedyQuads; ++i) {
      quads[i] = reinterpret_cast<const float4*>(logits + begin)[i * kGreedyThreads + thread];
    }
#pragma unroll
    for (int i = 0; i < kGreedyQuads; ++i) {
      const int32_t token = begin + (i * kGreedyThreads + thread) * 4;
      take(token, quads[i].x);
      take(token + 1, quads[i].y);
      take(token + 2, quads[i].z);
      take(token + 3, quads[i].w);
    }
  } else {
#pragma unroll 4
    for (int32_t token = begin + thread; token < end; token += kGreedyThreads) {
      take(token, logits[token]);
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const unsigned long long other = __shfl_xor_sync(~0u, best, offset);
    best = best > other ? best : other;
  }
  if (lane_index() == 0) warp_best[warp_index()] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int warp = 1; warp < kGreedyThreads / 32; ++warp) {
    best = best > warp_best[warp] ? best : warp_best[warp];
  }
  GreedyScratch& row = scratch[row_index];
  atomicMax(&row.best, best);
  __threadfence();
  if (atomicAdd(&row.num_done, 1u) + 1 != gridDim.x) return;
  __threadfence();
  best = atomicExch(&row.best, 0ull);
  row.num_done = 0;
  const bool finite = best != kNotFinite;
  const int32_t token = static_cast<int32_t>(~static_cast<uint32_t>(best));
  launch.tokens[row_index] = finite ? token : -1;
  if (launch.previous_tokens != nullptr) {
    launch.previous_tokens[logit_row] = finite ? token : 0;
  }
}

// One row of any parameters; numerics.md, "Sampling without rounding".
//   grid    rows, block 512 (two a multiprocessor) or, for few rows, 1024
//   shared  17 KB and 12 bytes for each 256 tokens
//   bytes   reads 4 V a row for the maximum and the finite check. Without top-p and top-k, 4 V more
//           for Z and one tile for the draw; with top-p, 4 V more for a histogram, then twice the
//           tiles that can hold the cut, or one of the tokens kept; with top-k, only tiles that can
//           hold one of the k. Mask, bias, bans and penalties: 4 V more written, and read back as
//           above. Log probabilities: 4 V more for their Z
// Measured: not yet.
template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads) sample_rows(SampleLaunch launch) {
  extern __shared__ uint64_t dynamic_memory[];
  __shared__ Scratch scratch;
  let_next_start();
  wait_for_previous();
  const int row_index = static_cast<int>(blockIdx.x);
  if (row_index >= launch.table->num_rows) return;
  const RowDescriptor row = launch.table->rows()[row_index];
  const int32_t vocab_size = static_cast<int32_t>(launch.slots.vocab_size);
  LogitRow raw;
  raw.logits = launch.logits + row.logit_row * launch.stride;
  raw.vocab_size = vocab_size;
  raw.num_tiles = (vocab_size + kTile - 1) / kTile;
  raw.aligned = aligned_to_quads(raw.logits);
  const Tiles tiles = {dynamic_memory, reinterpret_cast<uint32_t*>(dynamic_memory + raw.num_tiles)};
  const int64_t mask_words = (vocab_size + 31) / 32;
  const uint32_t* mask = row.mask_row < 0 ? nullptr : launch.mask + row.mask_row * mask_words;
  LogprobTerms* terms = launch.logprobs + row_index;
  const int32_t token = sample_token<kThreads>(raw, row, slot_view(launch.slots, row.slot), mask,
                                               launch.adjusted + row_index * launch.adjusted_stride,
                                               tiles, scratch, terms);
  // Every thread has read the slot's state: the barriers of the last step come after.
  if (threadIdx.x != 0) return;
  launch.tokens[row_index] = token;
  if (launch.previous_tokens != nullptr) {
    launch.previous_tokens[row.logit_row] = token >= 0 ? token : 0;
  }
  if (token < 0) return;
  if (row.num_top >= 0) terms->logit = raw.logits[token];
  if (row.forced_token < 0 && (row.flags & kAloneInSlot) != 0) {
    advance_slot(launch.slots, row.slot, token);
  }
}

// Advances the slots that several rows of a launch share, after all of them have been sampled: one
// thread a slot, in the order of the rows. Grid ceil(rows / 128), block 128.
__global__ void advance_shared_slots(SampleLaunch launch) {
  let_next_start();
  wait_for_previous();
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (first >= launch.table->num_rows) return;
  const RowDescriptor* rows = launch.table->rows();
  if ((rows[first].flags & kFirstOfSlot) == 0) return;
  for (int row = first; row >= 0; row = rows[row].next_of_slot) {
    if (rows[row].forced_token >= 0 || launch.tokens[row] < 0) continue;
    advance_slot(launch.slots, rows[row].slot, launch.tokens[row]);
  }
}

// Grid ceil(entries / 256), block 256.
__global__ void fill_counts(const TokenCount* entries, int num_entries, WindowCount* counts) {
  let_next_start();
  wait_for_previous();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < num_entries) counts[entries[i].token] = {entries[i].seen, entries[i].output};
}

template <int kThreads>
absl::Status LaunchRows(const SampleLaunch& launch, const SamplingConfig& config, int num_rows,
                        cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(num_rows));
  shape.block = dim3(kThreads);
  shape.shared_bytes = static_cast<size_t>(config.shared_bytes);
  return ToStatus(Launch(stream, shape, sample_rows<kThreads>, launch), "sample_rows");
}

const KernelModule kModule(argmax_chunks);

}  // namespace

SamplingConfig ConfigureSampling(int num_rows, int64_t vocab_size, int num_multiprocessors) {
  SamplingConfig config;
  config.threads = num_rows > num_multiprocessors ? 512 : 1024;
  config.num_tiles = static_cast<int32_t>((vocab_size + kTile - 1) / kTile);
  config.shared_bytes =
      config.num_tiles * static_cast<int64_t>(sizeof(uint64_t) + sizeof(uint32_t));
  config.greedy_chunks = static_cast<int32_t>((vocab_size + kGreedyChunk - 1) / kGreedyChunk);
  return config;
}

int64_t AdjustedStride(int64_t vocab_size) { return (vocab_size + kTile - 1) / kTile * kTile; }

absl::Status LaunchGreedy(const SampleLaunch& launch, GreedyScratch* scratch, int num_rows,
                          cudaStream_t stream) {
  if (num_rows == 0) return absl::OkStatus();
  const SamplingConfig config = ConfigureSampling(num_rows, launch.slots.vocab_size, 1);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(config.greedy_chunks), static_cast<unsigned>(num_rows));
  shape.block = dim3(kGreedyThreads);
  return ToStatus(Launch(stream, shape, argmax_chunks, launch, scratch), "argmax_chunks");
}

absl::Status LaunchSample(const SampleLaunch& launch, int num_rows, bool shared_slots,
                          int num_multiprocessors, cudaStream_t stream) {
  if (num_rows == 0) return absl::OkStatus();
  const SamplingConfig config =
      ConfigureSampling(num_rows, launch.slots.vocab_size, num_multiprocessors);
  absl::Status status = config.threads == 512 ? LaunchRows<512>(launch, config, num_rows, stream)
                                              : LaunchRows<1024>(launch, config, num_rows, stream);
  if (!status.ok() || !shared_slots) return status;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((num_rows + 127) / 128));
  shape.block = dim3(128);
  return ToStatus(Launch(stream, shape, advance_shared_slots, launch), "advance_shared_slots");
}

absl::Status LaunchFillCounts(const TokenCount* entries, int num_entries, WindowCount* counts,
                              cudaStream_t stream) {
  if (num_entries == 0) return absl::OkStatus();
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((num_entries + 255) / 256));
  shape.block = dim3(256);
  return ToStatus(Launch(stream, shape, fill_counts, entries, num_entries, counts), "fill_counts");
}

}  // namespace sluice::kernels::cuda
