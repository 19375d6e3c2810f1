#pragma once

// linear_stream: the product of few tokens on Hopper cards, bound by the weights' way from memory.
// A block has up to 16 tiles of 16 weight rows, four to a warpgroup, for each K slice that it
// computes; the slices that it does not are other blocks' of its cluster. Every warp keeps a ring
// of bulk copies of its own tile's weights going, filled before the previous kernel has ended; one
// more warp brings operand rows. The slices meet in shared memory, the cluster's included.
//
// Grid (clusters of rows over all tasks, blocks of tokens), 128 threads a warpgroup and 32. Reads
// every weight once a block of tokens and the operand rows once a block of rows; writes 16 bytes a
// thread. H200, weights not in L2, BF16 [37888 x 3584] as gate and up: 64.5 us for 8 tokens (4.2
// TB/s of the 4.3 that a copy reaches), 71.7 us for 64 (3.8 TB/s).

#include "kernels/cuda/linear_wgmma.cuh"
#include "kernels/cuda/mma.cuh"

namespace sluice::kernels::cuda {
namespace stream {

// What a block works on.
struct StreamBlock {
  int task;
  int first_tile;
  int row_groups;  // warpgroups of one slice
  int rank;        // in the cluster
  int slice_units;
  int num_slices;
};

__device__ inline StreamBlock find_block(const LinearArgs& args, const LinearConfig& config) {
  const int cluster = blockIdx.x / config.cluster;
  StreamBlock block;
  block.task = 0;
  const int num_tasks = args.gated ? 1 : args.num_tasks;
  while (block.task + 1 < num_tasks && cluster >= config.tasks[block.task + 1].first_block) {
    ++block.task;
  }
  const LinearConfig::Task& plan = config.tasks[block.task];
  const PackedView& weight = args.tasks[block.task].weight;
  block.first_tile = (cluster - plan.first_block) * plan.tiles_a_block;
  block.row_groups = blockDim.x / 128 / plan.slice_groups;
  block.rank = blockIdx.x % config.cluster;
  block.slice_units = SliceUnits(weight.tiles, weight.units);
  block.num_slices = (weight.units + block.slice_units - 1) / block.slice_units;
  return block;
}

struct StreamMemory {
  std::byte* base;
  __device__ uint64_t* weights_full(int warp) const {
    return reinterpret_cast<uint64_t*>(base) + warp * kMaxStages;
  }
  __device__ uint64_t* x_full(int ring) const {
    return weights_full(4 * kMaxStreamWarpgroups) + ring * 2 * kMaxStages;
  }
  __device__ uint64_t* x_empty(int ring) const { return x_full(ring) + kMaxStages; }
  __device__ std::byte* x(const LinearConfig& config, int stage_bytes, int ring) const {
    return base + kStreamHead + ring * config.x_stages * stage_bytes;
  }
  __device__ std::byte* weights(const LinearConfig& config, int stage_bytes, int warp) const {
    return x(config, stage_bytes, config.x_rings) + warp * config.ring_bytes;
  }
};

// By one thread, or by a warp where kElects: brings the operand rows of the block's slices, a stage
// of each in turn.
template <int kTokens>
__device__ void bring_operands(const LinearArgs& args, const LinearConfig& config,
                               const StreamBlock& block, const StreamMemory& memory) {
  constexpr int kUnits = StreamUnits(kTokens);
  constexpr int kStageBytes = kUnits * 128 * kTokens;
  const int units = args.input.units;
  const int slice_groups = config.tasks[block.task].slice_groups;
  const auto* x = reinterpret_cast<const std::byte*>(args.input.x);
  const int64_t step_bytes = static_cast<int64_t>(args.input.groups) * 256;
  const bool whole = args.input.groups * 8 == kTokens;
  for (int k = 0; k * kUnits < block.slice_units; ++k) {
    const int slot = k % config.x_stages;
    for (int ring = 0; ring < slice_groups; ++ring) {
      const int slice_begin = (block.rank * slice_groups + ring) * block.slice_units;
      const int begin = slice_begin + k * kUnits;
      const int count = min(kUnits, min(units, slice_begin + block.slice_units) - begin);
      if (count <= 0) continue;
      if (k >= config.x_stages) {
        wait_for_phase(memory.x_empty(ring) + slot, (k / config.x_stages - 1) & 1);
      }
      uint64_t* full = memory.x_full(ring) + slot;
      std::byte* to = memory.x(config, kStageBytes, ring) + slot * kStageBytes;
      const std::byte* from = x + begin * 4 * step_bytes + blockIdx.y * (kTokens / 8 * 256);
      if (kElects<kTokens> && !elect_lane()) continue;
      arrive_expecting(full, count * 128 * kTokens);
      if (whole) {
        copy_bulk(to, from, count * 128 * kTokens, full);
        continue;
      }
      for (int step = 0; step < 4 * count; ++step) {
        copy_bulk(to + step * kTokens * 32, from + step * step_bytes, kTokens * 32, full);
      }
    }
  }
}

// What a warp multiplies: a slice of the tile that is `inside` tiles from the block's first.
__device__ inline WeightRing ring_of(const PackedView& weight, const LinearConfig& config,
                                     const StreamBlock& block, int slice_group, int inside) {
  const LinearConfig::Task& plan = config.tasks[block.task];
  const int slice = block.rank * plan.slice_groups + slice_group;
  WeightRing ring;
  ring.stages = min(kMaxStages, config.ring_bytes / StageOf(weight.type).bytes());
  ring.tile = block.first_tile + inside;
  ring.begin = min(weight.units, slice * block.slice_units);
  ring.end = slice_group < plan.slice_groups ? min(weight.units, ring.begin + block.slice_units)
                                             : ring.begin;
  ring.active = inside < plan.tiles_a_block && ring.tile < weight.tiles && ring.begin < ring.end;
  return ring;
}

// acc += the warp's 16 rows times kTokens tokens, with the instruction of one warp: making the
// weights is most of the work, and warps that wait for nobody do it twice as fast.
template <typename Unit, int kTokens>
__device__ __forceinline__ void multiply_alone(WeightRing& weights, OperandRing& x, int lane,
                                               float (&acc)[kTokens / 2]) {
  constexpr int kStageUnits = WeightRing::shape_of<Unit>().units;
  constexpr int kOperandUnits = StreamUnits(kTokens);
  static_assert(kOperandUnits % kStageUnits == 0);
  constexpr int kGroups = kTokens / 8;
  constexpr int kStepWords = kTokens * 8;
  float sums[kGroups][4] = {};
  for (int first = weights.begin; first < weights.end; first += kStageUnits) {
    const uint32_t inside = static_cast<uint32_t>(first - weights.begin) % kOperandUnits;
    if (inside == 0) wait_for_phase(x.full + x.slot, x.parity);
    weights.wait();
    const uint32_t* operands = reinterpret_cast<const uint32_t*>(x.memory) +
                               (x.slot * kOperandUnits + inside) * 4 * kStepWords + lane;
    const auto multiply = [&](int i) {
      Unit unit;
      weights.take_of_stage(first, i, lane, unit);
      const auto step = [&]<int j>() {
        uint32_t a[4];
        unit.template fragment<j>(lane, a);
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          const uint32_t* b = operands + (4 * i + j) * kStepWords + g * 64;
          mma_step(sums[g], a, b[0], b[32]);
        }
      };
      step.template operator()<0>();
      step.template operator()<1>();
      step.template operator()<2>();
      step.template operator()<3>();
    };
    // Units of a whole stage in one piece of code, so that one is made while another is multiplied.
    if (!weights.active) {
      // A warp without rows only takes part in giving the stages back.
    } else if (first + kStageUnits <= weights.end) {
#pragma unroll
      for (int i = 0; i < kStageUnits; ++i) multiply(i);
    } else {
#pragma unroll 1
      for (int i = 0; first + i < weights.end; ++i) multiply(i);
    }
    weights.template refill<Unit>(weights.slot, lane);
    weights.move_if(true);
    if (inside + kStageUnits == kOperandUnits) {
      arrive_if(lane == 0, x.empty + x.slot);
      x.next(1);
    }
  }
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) acc[i] = sums[i / 4][i % 4];
}

// A warp leaves its 16 rows of a slice: [token][kPartRow].
template <int kTokens>
__device__ __forceinline__ void leave_part(float* part, int lane, const float (&acc)[kTokens / 2]) {
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int token = i / 4 * 8 + lane % 4 * 2 + i % 2;
    part[token * kPartRow + lane / 4 + i / 2 % 2 * 8] = acc[i];
  }
}

__device__ __forceinline__ float4 plus(float4 a, float4 b) {
  return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z),
                     __fadd_rn(a.w, b.w));
}

// Writes up to four rows of a token from row n on.
__device__ inline void write_rows(const LinearArgs& args, const LinearTask& task, int n, int t,
                                  float4 values) {
  float* out = task.out + static_cast<int64_t>(t) * task.out_stride + n;
  if (n + 4 <= task.weight.rows && reinterpret_cast<uintptr_t>(out) % 16 == 0) {
    float4 sum = values;
    if (args.add_to_out) {
      const float4 old = __ldcg(reinterpret_cast<const float4*>(out));
      sum =
          plus(old, make_float4(__fmul_rn(args.scale, values.x), __fmul_rn(args.scale, values.y),
                                __fmul_rn(args.scale, values.z), __fmul_rn(args.scale, values.w)));
    }
    *reinterpret_cast<float4*>(out) = sum;
    return;
  }
  const float each[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (n + i >= task.weight.rows) break;
    out[i] = args.add_to_out ? __fadd_rn(__ldcg(out + i), __fmul_rn(args.scale, each[i])) : each[i];
  }
}

__device__ __forceinline__ float4 finished_rows(const LinearTask& task, int n, float factor,
                                                float4 sum) {
  const auto one = [&](int i, float value) {
    return n + i < task.weight.rows ? finished(task, n + i, factor, value) : 0.0f;
  };
  return make_float4(one(0, sum.x), one(1, sum.y), one(2, sum.z), one(3, sum.w));
}

// Adds the slices, ascending, and writes the block's rows for its share of the tokens.
template <int kTokens>
__device__ void finish_block(const LinearArgs& args, const LinearConfig& config,
                             const StreamBlock& block, const StreamMemory& memory) {
  constexpr int kStageBytes = StreamUnits(kTokens) * 128 * kTokens;
  const LinearConfig::Task& plan = config.tasks[block.task];
  const LinearTask& task = args.tasks[block.task];
  const int quads = min(plan.tiles_a_block, task.weight.tiles - block.first_tile) * 4;
  const int first_token = blockIdx.y * kTokens;
  const int num_tokens = min(kTokens, args.num_tokens - first_token);
  // The sum of quad `quad` of a token; `group`: first warpgroup of the rows.
  const auto sum_of = [&](int group, int quad, int token) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int s = 0; s < block.num_slices; ++s) {
      const int slice_group = s % plan.slice_groups;
      const int warp = (slice_group * block.row_groups + group) * 4 + quad / 4;
      const auto* part = reinterpret_cast<const float*>(memory.weights(config, kStageBytes, warp)) +
                         token * kPartRow + quad % 4 * 4;
      const float4 more = config.cluster > 1 ? load_from_block(part, s / plan.slice_groups)
                                             : *reinterpret_cast<const float4*>(part);
      sum = s == 0 ? more : plus(sum, more);
    }
    return sum;
  };
  for (int i = threadIdx.x; i < quads * num_tokens; i += blockDim.x) {
    const int quad = i % quads;
    const int token = i / quads * config.cluster + block.rank;
    if (token >= num_tokens) break;
    const int n = block.first_tile * kTileRows + quad * 4;
    const float factor = __ldcg(args.input.factors + first_token + token);
    float4 values = finished_rows(task, n, factor, sum_of(0, quad, token));
    if (args.gated) {
      const float4 gate =
          finished_rows(args.tasks[1], n, factor, sum_of(block.row_groups / 2, quad, token));
      values = make_float4(
          gated(args.activation, gate.x, values.x), gated(args.activation, gate.y, values.y),
          gated(args.activation, gate.z, values.z), gated(args.activation, gate.w, values.w));
    }
    write_rows(args, task, n, first_token + token, values);
  }
}

// kHalf: all weights are half-precision, which takes fewer registers: one more block fits.
template <int kTokens, int kWarpgroups, bool kHalf>
__global__ void __launch_bounds__(128 * kWarpgroups + 32, StreamBlocks(kWarpgroups, kHalf, kTokens))
    linear_stream(const __grid_constant__ LinearArgs args,
                  const __grid_constant__ LinearConfig config) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kUnits = StreamUnits(kTokens);
  constexpr int kStageBytes = kUnits * 128 * kTokens;
  extern __shared__ __align__(128) std::byte bytes[];
  const StreamMemory memory = {bytes};
  let_next_start();
  const StreamBlock block = find_block(args, config);
  const LinearConfig::Task& plan = config.tasks[block.task];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  // The warp that brings operand rows goes with the others to the barriers, which all meet at one
  // place in the code: its slice is none, so that it has no weights.
  const bool brings = warp == static_cast<int>(blockDim.x / 128 * 4);
  const int slice_group = brings ? plan.slice_groups : warp / 4 / block.row_groups;
  int row_group = warp / 4 % block.row_groups;
  const bool second = args.gated && row_group >= block.row_groups / 2;
  if (second) row_group -= block.row_groups / 2;
  const PackedView weight = args.tasks[second ? 1 : block.task].weight;
  const int inside = row_group * 4 + warp % 4;
  WeightRing weights = ring_of(weight, config, block, slice_group, inside);
  weights.memory = memory.weights(config, kStageBytes, warp);
  weights.full = memory.weights_full(warp);
  if (!brings) {
    weights.init(lane);
    weights.start(weight, weights.begin, weights.end, lane);
  }
  if (brings && lane == 0) {
    for (int ring = 0; ring < plan.slice_groups; ++ring) {
      for (int i = 0; i < config.x_stages; ++i) {
        init_barrier(memory.x_full(ring) + i, 1);
        init_barrier(memory.x_empty(ring) + i, block.row_groups * 4);
      }
    }
    fence_barriers();
  }
  __syncthreads();
  wait_for_previous();
  if (brings) {
    if (kElects<kTokens> || lane == 0) bring_operands<kTokens>(args, config, block, memory);
  } else {
    OperandRing x;
    x.memory = memory.x(config, kStageBytes, min(slice_group, plan.slice_groups - 1));
    x.full = memory.x_full(slice_group);
    x.empty = memory.x_empty(slice_group);
    x.stages = config.x_stages;
    float acc[kTokens / 2] = {};
    const auto multiply = [&]<typename Unit>() {
      if constexpr (!kHalf && kTokens <= kTokensAlone) {
        multiply_alone<Unit, kTokens>(weights, x, lane, acc);
      } else {
        // With 64 tokens the weights of the steps that follow would take more registers than there
        // are.
        multiply_units<Unit, kTokens, kTokens != 64, 4 * kUnits, false>(weights, x, weights.begin,
                                                                        weights.end, lane, acc);
      }
    };
    if constexpr (kHalf) {
      multiply.template operator()<UnitHalf>();
    } else {
      with_unit(weight.type, multiply);
    }
    if (weights.active) leave_part<kTokens>(reinterpret_cast<float*>(weights.memory), lane, acc);
  }
  __syncwarp();
  if (config.cluster > 1) {
    meet_cluster();
  } else {
    __syncthreads();
  }
  finish_block<kTokens>(args, config, block, memory);
  if (config.cluster > 1) meet_cluster();
#endif
}

template <int kTokens, int kWarpgroups, bool kHalf>
cudaError_t RunOf(const LinearArgs& args, const LinearConfig& config, cudaStream_t stream) {
  const auto kernel = linear_stream<kTokens, kWarpgroups, kHalf>;
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(config.grid_x), static_cast<unsigned>(config.grid_y)),
      .block = dim3(static_cast<unsigned>(config.threads)),
      .shared_bytes = static_cast<size_t>(config.shared_bytes),
      .cluster = static_cast<unsigned>(config.cluster)};
  return Launch(stream, shape, kernel, args, config);
}

template <int kTokens>
cudaError_t Run(const LinearArgs& args, const LinearConfig& config, cudaStream_t stream) {
  if constexpr (kTokens <= 64) {
    if (config.threads <= 288) {
      return AllHalf(args) ? RunOf<kTokens, 2, true>(args, config, stream)
                           : RunOf<kTokens, 2, false>(args, config, stream);
    }
  }
  return RunOf<kTokens, StreamWarpgroups(kTokens), false>(args, config, stream);
}

}  // namespace stream
}  // namespace sluice::kernels::cuda
