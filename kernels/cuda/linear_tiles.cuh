#pragma once

// linear_tiles: the product of many tokens on Hopper cards, bound by the tensor cores. A block has
// 128 weight rows, 64 to a warpgroup, and 128 or 256 tokens. Every warp keeps a ring of bulk copies
// of its own 16 rows' weights going and makes f16 of the next step while the tensor cores have the
// present one. The two blocks of a cluster have the same tokens: each brings half of the operand
// rows to both. K slices one after the other, their sum in registers, or with 256 tokens in shared
// memory.
//
// Grid (pairs of blocks of rows times blocks of tokens, tokens first), clusters of two, 384
// threads. Reads the weights once a block of tokens, from L2 all but the first time, and the
// operand rows once a cluster; writes whole sectors. H200, 2,048 tokens: BF16 [37888 x 3584] as
// gate and up 604 TFLOP/s, [3584 x 18944] in four slices 510 (cuBLAS without slices 711-742); Q5_0
// [9728 x 896] as gate and up 286, Q6_K [896 x 4864] 296.

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
  __device__ uint64_t* factors_full() const { return x_empty() + kMaxStages; }
  __device__ float* factors() const { return reinterpret_cast<float*>(base + kTilesBarriers); }
  __device__ std::byte* x() const { return base + kTilesHead; }
  __device__ std::byte* weights(int warp) const {
    return x() + config.x_stages * kTilesStageBytes + warp * config.ring_bytes;
  }
  __device__ void init() const {
    for (int i = 0; i < config.x_stages; ++i) {
      init_barrier(x_full() + i, 1);
      init_barrier(x_empty() + i, 16);  // warps of both blocks
    }
    init_barrier(factors_full(), 32);
    fence_barriers();
  }
  // Sums of earlier slices: [kMostAccumulators / 4][256 threads] of four.
  __device__ float4* totals() const { return reinterpret_cast<float4*>(weights(8)); }
};

// By one warp: the tokens' powers of two, for the end.
template <int kTokens>
__device__ void bring_factors(const LinearArgs& args, const TilesMemory& memory, int token_block,
                              int lane) {
  for (int i = lane; i < kTokens; i += 32) {
    const int token = token_block * kTokens + i;
    memory.factors()[i] = token < args.num_tokens ? __ldcg(args.input.factors + token) : 0.0f;
  }
  arrive_if(true, memory.factors_full());
}

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
                                                OperandRing& x, float4* totals, bool whole_k,
                                                int lane, float (&acc)[kTokens / 2]) {
  constexpr int kSize = kTokens / 2;
  constexpr bool kInRegisters = kTokens < kMostTilesTokens;
  const int slice_units = whole_k ? weight.units : SliceUnits(weight.tiles, weight.units);
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
  int n;       // in the matrix
  int token;   // first, in the step
  int inside;  // the same in the block
  bool whole;  // all rows and tokens of the block exist
};

// acc becomes the products with powers of two and bias.
template <int kSize>
__device__ __forceinline__ void finish(const LinearTask& task, const Place& place,
                                       const float* factors, float (&acc)[kSize]) {
  const int rows[2] = {min(place.n, task.weight.rows - 1), min(place.n + 8, task.weight.rows - 1)};
  float row_factors[2] = {1.0f, 1.0f};
  float biases[2] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (task.weight.row_factors != nullptr)
      row_factors[r] = __ldg(task.weight.row_factors + rows[r]);
    if (task.bias != nullptr) biases[r] = __ldg(task.bias + rows[r]);
  }
#pragma unroll
  for (int i = 0; i < kSize; i += 4) {
    const float2 factor = *reinterpret_cast<const float2*>(factors + place.inside + i * 2);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      acc[i + q] =
          __fmul_rn(__fmul_rn(acc[i + q], q % 2 == 0 ? factor.x : factor.y), row_factors[q / 2]);
    }
  }
  if (task.bias == nullptr) return;
#pragma unroll
  for (int i = 0; i < kSize; ++i) acc[i] = __fadd_rn(acc[i], biases[i / 2 % 2]);
}

// Writes acc[kFirst, kEnd). Eight lanes have the eight rows of a token's sector.
template <bool kWhole, bool kAdd, int kFirst, int kEnd, int kSize>
__device__ __forceinline__ void write_all(const LinearArgs& args, const LinearTask& task,
                                          const Place& place, const float (&acc)[kSize]) {
  const int64_t stride = task.out_stride;
  float* to = task.out + static_cast<int64_t>(place.token + kFirst * 2) * stride + place.n;
  const bool inside[2] = {place.n < task.weight.rows, place.n + 8 < task.weight.rows};
#pragma unroll
  for (int first = kFirst; first < kEnd; first += 16) {
    few_at_a_time();
    float old[16];
#pragma unroll
    for (int turn = 0; turn < (kAdd ? 2 : 1); ++turn) {
      const bool loads = kAdd && turn == 0;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        float* at = to + i / 4 * 8 * stride + i % 2 * stride + i / 2 % 2 * 8;
        const int token = place.token + (first + i / 4 * 4) * 2 + i % 2;
        if (!kWhole && (!inside[i / 2 % 2] || token >= args.num_tokens)) continue;
        if (loads) {
          old[i] = __ldcg(at);
        } else {
          const float sum = acc[first + i];
          *at = kAdd ? __fadd_rn(old[i], __fmul_rn(args.scale, sum)) : sum;
        }
      }
    }
    to += 32 * stride;
  }
}
template <int kFirst, int kEnd, int kSize>
__device__ __forceinline__ void write(const LinearArgs& args, const LinearTask& task,
                                      const Place& place, const float (&acc)[kSize]) {
  if (!place.whole) {
    if (args.add_to_out) {
      write_all<false, true, kFirst, kEnd>(args, task, place, acc);
    } else {
      write_all<false, false, kFirst, kEnd>(args, task, place, acc);
    }
  } else if (args.add_to_out) {
    write_all<true, true, kFirst, kEnd>(args, task, place, acc);
  } else {
    write_all<true, false, kFirst, kEnd>(args, task, place, acc);
  }
}

// The first warpgroup has ups and the second gates of the same rows: each gets the other's for half
// of the tokens, and writes those.
template <int kSize>
__device__ __forceinline__ void write_gated(const LinearArgs& args, const Place& place,
                                            const TilesMemory& memory, int warpgroup,
                                            float (&acc)[kSize]) {
  constexpr int kHalf = kSize / 2;
  float4* shared = reinterpret_cast<float4*>(memory.x()) + threadIdx.x % 128;
  // Both are through with the operand rows that lay there, and no more are on their way.
  asm volatile("bar.sync 1, 256;" ::: "memory");
  if (warpgroup == 1) {
#pragma unroll
    for (int i = 0; i < kHalf; i += 4) shared[i / 4 * 128] = four_of(acc, i);
  } else {
#pragma unroll
    for (int i = kHalf; i < kSize; i += 4) shared[i / 4 * 128] = four_of(acc, i);
  }
  asm volatile("bar.sync 1, 256;" ::: "memory");
  if (warpgroup == 0) {
#pragma unroll
    for (int i = 0; i < kHalf; i += 4) {
      if (i % 16 == 0) few_at_a_time();
      const float4 gate = shared[i / 4 * 128];
      acc[i] = gated(args.activation, gate.x, acc[i]);
      acc[i + 1] = gated(args.activation, gate.y, acc[i + 1]);
      acc[i + 2] = gated(args.activation, gate.z, acc[i + 2]);
      acc[i + 3] = gated(args.activation, gate.w, acc[i + 3]);
    }
    write<0, kHalf>(args, args.tasks[0], place, acc);
  } else {
#pragma unroll
    for (int i = kHalf; i < kSize; i += 4) {
      if (i % 16 == 0) few_at_a_time();
      const float4 up = shared[i / 4 * 128];
      acc[i] = gated(args.activation, acc[i], up.x);
      acc[i + 1] = gated(args.activation, acc[i + 1], up.y);
      acc[i + 2] = gated(args.activation, acc[i + 2], up.z);
      acc[i + 3] = gated(args.activation, acc[i + 3], up.w);
    }
    write<kHalf, kSize>(args, args.tasks[0], place, acc);
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
  if (threadIdx.x == 256) memory.init();
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
    if (warp == 9) bring_factors<kTokens>(args, memory, token_block, lane);
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    float acc[kTokens / 2];
    OperandRing x;
    x.memory = memory.x();
    x.full = memory.x_full();
    x.empty = memory.x_empty();
    x.stages = config.x_stages;
    multiply_slices<Unit, kTokens>(task.weight, weights, x, memory.totals() + threadIdx.x,
                                   config.whole_k, lane, acc);
    Place place;
    place.n = tile * kTileRows + lane / 4;
    place.inside = lane % 4 * 2;
    place.token = token_block * kTokens + place.inside;
    place.whole = (tile + 1) * kTileRows <= task.weight.rows &&
                  (token_block + 1) * kTokens <= args.num_tokens;
    wait_for_phase(memory.factors_full(), 0);
    finish(task, place, memory.factors(), acc);
    if (args.gated) {
      write_gated(args, place, memory, warpgroup, acc);
    } else {
      write<0, kTokens / 2>(args, task, place, acc);
    }
    __syncwarp();
  }
  // The other block's copies and arrivals come here until it is done.
  meet_cluster();
#endif
}

template <typename Unit, int kTokens>
cudaError_t RunOf(const LinearArgs& args, const LinearConfig& config, cudaStream_t stream) {
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
