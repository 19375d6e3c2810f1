#pragma once

// linear_tiles: the product of many tokens on Hopper cards, bound by the tensor cores. A block has
// 128 weight rows, 64 to a warpgroup, and 128 or 256 tokens. Every warp keeps a ring of bulk copies
// of its own 16 rows' weights going and makes f16 of the next step while the tensor cores have the
// present one. The two blocks of a cluster have the same tokens: each brings half of the operand
// rows to both. K slices one after the other, their sum in registers, or with 256 tokens in shared
// memory.
//
// Grid (pairs of blocks of rows times blocks of tokens, tokens first), clusters of two, 288
// threads. Reads the weights once a block of tokens, from L2 all but the first time, and the
// operand rows once a cluster; writes whole sectors. Figures: docs/performance.md.

#include "kernels/cuda/linear_wgmma.cuh"

namespace sluice::kernels::cuda {
namespace tiles {

// Two warpgroups that multiply, and one whose registers they get, of which a thread brings
// operands.
constexpr int kThreads = 384;
constexpr int kMostAccumulators = kMostTilesTokens / 2;

struct TilesMemory {
  std::byte* base;
  const LinearConfig& config;
  __device__ uint64_t* weights_full(int warp) const {
    return reinterpret_cast<uint64_t*>(base) + warp * kMaxStages;
  }
  __device__ uint64_t* x_full() const { return weights_full(8); }
  __device__ uint64_t* x_empty() const { return x_full() + kMaxStages; }
  __device__ std::byte* x() const { return base + kTilesHead; }
  __device__ std::byte* weights(int warp) const {
    return x() + config.x_stages * kTilesStageBytes + warp * config.ring_bytes;
  }
  // Sums of earlier slices: [kMostAccumulators / 4][256 threads] of four.
  __device__ float4* totals() const { return reinterpret_cast<float4*>(weights(8)); }
};

// By one thread: this block's half of every stage, to both blocks.
template <int kTokens>
__device__ void bring_operands(const LinearArgs& args, const LinearConfig& config,
                               const TilesMemory& memory, int token_block, int rank) {
  constexpr int kStageSteps = TilesStageSteps(kTokens);
  constexpr int kHalf = kTokens * 16;  // bytes of half a step
  const auto* x = reinterpret_cast<const std::byte*>(args.input.x);
  const int64_t step_bytes = static_cast<int64_t>(args.input.groups) * 256;
  const std::byte* from = x + token_block * (2 * kHalf) + rank * kHalf;
  int slot = 0;
  uint32_t parity = 1;
  for (int k = 0; k < args.input.units * 4 / kStageSteps; ++k) {
    wait_for_phase(memory.x_empty() + slot, parity);
    uint64_t* full = memory.x_full() + slot;
    arrive_expecting(full, kTilesStageBytes);
    std::byte* to = memory.x() + slot * kTilesStageBytes + rank * kHalf;
#pragma unroll
    for (int step = 0; step < kStageSteps; ++step) {
      copy_bulk_to(to + step * 2 * kHalf, from, kHalf, full, 3);
      from += step_bytes;
    }
    if (++slot == config.x_stages) {
      slot = 0;
      parity ^= 1;
    }
  }
}

template <int kSize>
__device__ __forceinline__ float4 four_of(const float (&acc)[kSize], int i) {
  return make_float4(acc[i], acc[i + 1], acc[i + 2], acc[i + 3]);
}

// Keeps the compiler from loading everything first, which would not fit the registers.
__device__ __forceinline__ void few_at_a_time() { asm volatile("" ::: "memory"); }

// All slices of the warpgroup's rows; `totals` is this thread's, 256 apart.
template <typename Unit, int kTokens>
__device__ __forceinline__ void multiply_slices(const PackedView& weight, WeightRing& weights,
                                                OperandRing& x, float4* totals, int lane,
                                                float (&acc)[kTokens / 2]) {
  constexpr int kSize = kTokens / 2;
  constexpr bool kInRegisters = kTokens < kMostTilesTokens;
  const int slice_units = SliceUnits(weight.tiles, weight.units);
  float total[kInRegisters ? kSize : 1];
  for (int begin = 0; begin < weight.units; begin += slice_units) {
    const int end = min(weight.units, begin + slice_units);
#pragma unroll
    for (int i = 0; i < kSize; ++i) acc[i] = 0.0f;
    multiply_units<Unit, kTokens, 2, TilesStageSteps(kTokens), true>(weight, weights, x, begin, end,
                                                                     lane, acc);
    x.release_if<true>(true, lane);
    if (slice_units >= weight.units) return;
    if constexpr (kInRegisters) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) total[i] = begin > 0 ? __fadd_rn(total[i], acc[i]) : acc[i];
    } else {
#pragma unroll
      for (int i = 0; i < kSize; i += 4) {
        if (i % 16 == 0) few_at_a_time();
        float4& kept = totals[i / 4 * 256];
        float4 sum = four_of(acc, i);
        if (begin > 0) {
          const float4 before = kept;
          sum = make_float4(__fadd_rn(before.x, sum.x), __fadd_rn(before.y, sum.y),
                            __fadd_rn(before.z, sum.z), __fadd_rn(before.w, sum.w));
        }
        if (end < weight.units) {
          kept = sum;
        } else {
          acc[i] = sum.x;
          acc[i + 1] = sum.y;
          acc[i + 2] = sum.z;
          acc[i + 3] = sum.w;
        }
      }
    }
  }
  if constexpr (kInRegisters) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) acc[i] = total[i];
  }
}

// What a thread holds: of rows n and n + 8 the tokens 8 i + 2 t and + 1.
struct Place {
  int n;      // in the matrix
  int token;  // first, in the step
};

// acc becomes the products with powers of two and bias.
template <int kSize>
__device__ __forceinline__ void finish(const LinearArgs& args, const LinearTask& task,
                                       const Place& place, float (&acc)[kSize]) {
  const auto row_factor = [&](int n) {
    return task.weight.row_factors != nullptr ? __ldg(task.weight.row_factors + n) : 1.0f;
  };
  const auto bias = [&](int n) { return task.bias != nullptr ? __ldg(task.bias + n) : 0.0f; };
  const int rows[2] = {min(place.n, task.weight.rows - 1), min(place.n + 8, task.weight.rows - 1)};
  const float row_factors[2] = {row_factor(rows[0]), row_factor(rows[1])};
  const float biases[2] = {bias(rows[0]), bias(rows[1])};
#pragma unroll
  for (int i = 0; i < kSize; i += 4) {
    if (i % 32 == 0) few_at_a_time();
    const int token = place.token + i * 2;
    float factors[2];
    factors[0] = token < args.num_tokens ? __ldcg(args.input.factors + token) : 0.0f;
    factors[1] = token + 1 < args.num_tokens ? __ldcg(args.input.factors + token + 1) : 0.0f;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      float sum = __fmul_rn(__fmul_rn(acc[i + q], factors[q % 2]), row_factors[q / 2]);
      if (task.bias != nullptr) sum = __fadd_rn(sum, biases[q / 2]);
      acc[i + q] = sum;
    }
  }
}

// Eight lanes write the eight rows of a token's sector.
template <int kSize>
__device__ __forceinline__ void write(const LinearArgs& args, const LinearTask& task,
                                      const Place& place, const float (&acc)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; i += 4) {
    if (i % 16 == 0) few_at_a_time();
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int token = place.token + i * 2 + q % 2;
      const int n = place.n + q / 2 * 8;
      if (n >= task.weight.rows || token >= args.num_tokens) continue;
      float* out = task.out + static_cast<int64_t>(token) * task.out_stride + n;
      float sum = acc[i + q];
      if (args.add_to_out) sum = __fadd_rn(__ldcg(out), __fmul_rn(args.scale, sum));
      *out = sum;
    }
  }
}

// The second warpgroup hands its gates to the first, whose ups are of the same rows.
template <int kSize>
__device__ __forceinline__ void apply_gates(const LinearArgs& args, const TilesMemory& memory,
                                            int warpgroup, float (&acc)[kSize]) {
  float4* gates = reinterpret_cast<float4*>(memory.x()) + threadIdx.x % 128;
  // Both are through with the operand rows that lay there, and no more are on their way.
  asm volatile("bar.sync 1, 256;" ::: "memory");
  if (warpgroup == 1) {
#pragma unroll
    for (int i = 0; i < kSize; i += 4) gates[i / 4 * 128] = four_of(acc, i);
  }
  asm volatile("bar.sync 1, 256;" ::: "memory");
  if (warpgroup == 1) return;
#pragma unroll
  for (int i = 0; i < kSize; i += 4) {
    if (i % 16 == 0) few_at_a_time();
    const float4 gate = gates[i / 4 * 128];
    acc[i] = gated(args.activation, gate.x, acc[i]);
    acc[i + 1] = gated(args.activation, gate.y, acc[i + 1]);
    acc[i + 2] = gated(args.activation, gate.z, acc[i + 2]);
    acc[i + 3] = gated(args.activation, gate.w, acc[i + 3]);
  }
}

template <typename Unit, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    linear_tiles(const __grid_constant__ LinearArgs args,
                 const __grid_constant__ LinearConfig config) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) std::byte bytes[];
  const TilesMemory memory = {bytes, config};
  let_next_start();
  const int rank = blockIdx.x % 2;
  const int token_block = blockIdx.x / 2 % config.grid_y;
  const int row_block = blockIdx.x / 2 / config.grid_y * 2 + rank;
  const int warp = threadIdx.x / 32;
  const int warpgroup = warp / 4;
  const int lane = threadIdx.x % 32;
  int index = 0;
  if (!args.gated) {
    while (index + 1 < args.num_tasks && row_block >= config.tasks[index + 1].first_block) ++index;
  } else if (warpgroup == 1) {
    index = 1;
  }
  const LinearTask& task = args.tasks[index];
  const LinearConfig::Task& plan = config.tasks[args.gated ? 0 : index];
  const int tile =
      (row_block - plan.first_block) * plan.tiles_a_block + (args.gated ? warp % 4 : warp);
  if (threadIdx.x == 256) {
    for (int i = 0; i < config.x_stages; ++i) {
      init_barrier(memory.x_full() + i, 1);
      init_barrier(memory.x_empty() + i, 16);
    }
    fence_barriers();
  }
  WeightRing weights;
  if (warp < 8) {
    weights.memory = memory.weights(warp);
    weights.full = memory.weights_full(warp);
    weights.stages = min(kMaxStages, config.ring_bytes / StageOf(task.weight.type).bytes());
    weights.tile = tile;
    weights.end = task.weight.units;
    weights.active = tile < task.weight.tiles;
    weights.start(task.weight, lane);
  }
  __syncwarp();
  meet_cluster();
  wait_for_previous();
  if (warpgroup == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 256) bring_operands<kTokens>(args, config, memory, token_block, rank);
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    float acc[kTokens / 2];
    OperandRing x;
    x.memory = memory.x();
    x.full = memory.x_full();
    x.empty = memory.x_empty();
    x.stages = config.x_stages;
    multiply_slices<Unit, kTokens>(task.weight, weights, x, memory.totals() + threadIdx.x, lane,
                                   acc);
    const Place place = {tile * kTileRows + lane / 4, token_block * kTokens + lane % 4 * 2};
    finish(args, task, place, acc);
    if (args.gated) apply_gates(args, memory, warpgroup, acc);
    if (weights.active && !(args.gated && warpgroup == 1)) write(args, task, place, acc);
    __syncwarp();
  }
  // The other block's copies and arrivals come here until it is done.
  meet_cluster();
#endif
}

template <typename Unit, int kTokens>
cudaError_t RunOf(const LinearArgs& args, const LinearConfig& config, cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(linear_tiles<Unit, kTokens>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           config.shared_bytes);
  if (error != cudaSuccess) return error;
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(config.grid_x) * static_cast<unsigned>(config.grid_y)),
      .block = dim3(kThreads),
      .shared_bytes = static_cast<size_t>(config.shared_bytes),
      .cluster = 2};
  return Launch(stream, shape, linear_tiles<Unit, kTokens>, args, config);
}

template <typename Unit>
cudaError_t Run(const LinearArgs& args, const LinearConfig& config, cudaStream_t stream) {
  return config.tokens == 128 ? RunOf<Unit, 128>(args, config, stream)
                              : RunOf<Unit, 256>(args, config, stream);
}

}  // namespace tiles
}  // namespace sluice::kernels::cuda
