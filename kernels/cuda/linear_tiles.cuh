#pragma once

// linear_tiles: the product of many tokens on Hopper cards, bound by the tensor cores. A block has
// 128 weight rows, 64 to a warpgroup, and 128 or 256 tokens, and goes from item to item: the next
// one's weights and operand rows come while the present one is written. Every warp keeps a ring of
// bulk copies of its own 16 rows' weights going and makes f16 of the next two steps while the
// tensor cores have the present two. The two blocks of a cluster have the same tokens: each brings
// half of the operand rows to both. With 128 tokens K slices follow each other, their sum in
// registers, and what the outcome is added to comes to shared memory meanwhile; with 256 there is
// one slice, or linear_tiles_spread. A launch has a range of the product's items.
//
// Grid: a block a multiprocessor, in clusters of two, 384 threads. Reads the weights once a block
// of tokens, from L2 all but the first time, and the operand rows once a cluster; writes whole
// sectors. Figures: docs/performance.md.

#include "kernels/cuda/linear_tiles_outcome.cuh"
#include "kernels/cuda/linear_tiles_spread.cuh"

namespace sluice::kernels::cuda {
namespace tiles {

// All slices of the warpgroup's rows, one after the other.
template <typename Unit, int kTokens>
__device__ __forceinline__ void multiply_slices(ItemWeights<kTokens>& weights, OperandRing& x,
                                                int slice_units, int lane,
                                                float (&acc)[kTokens / 2]) {
  constexpr int kSize = kTokens / 2;
  const int units = weights.end;
  const auto multiply = [&](int begin, int end) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) acc[i] = 0.0f;
    multiply_units<Unit, kTokens, true, TilesStageSteps(kTokens), true>(weights, x, begin, end,
                                                                        lane, acc);
    x.release_if<true>(true, lane);
  };
  if constexpr (kTokens == kMostTilesTokens) {
    multiply(0, units);  // there is one
  } else {
    float total[kSize];
#pragma unroll 1
    for (int begin = 0; begin < units; begin += slice_units) {
      multiply(begin, min(units, begin + slice_units));
#pragma unroll
      for (int i = 0; i < kSize; ++i) total[i] = begin > 0 ? __fadd_rn(total[i], acc[i]) : acc[i];
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) acc[i] = total[i];
  }
}

// Pairs of blocks that go from item to item.
template <typename Unit, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    linear_tiles(const __grid_constant__ LinearArgs args,
                 const __grid_constant__ LinearConfig config) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) std::byte bytes[];
  const TilesMemory memory = {bytes, config};
  let_next_start();
  const int rank = blockIdx.x % 2;
  const int warp = threadIdx.x / 32;
  const int warpgroup = warp / 4;
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));  // not read from its special register at every turn
  const int items = config.end_item;
  const int stride = config.blocks / 2;
  const int first_item = config.first_item + blockIdx.x / 2;
  if (threadIdx.x == 256) memory.init();
  ItemWeights<kTokens> weights;
  if (warp < 8) {
    weights.memory = memory.weights(warp);
    weights.full = memory.weights_full(warp);
    weights.stages = min(kMaxStages, config.ring_bytes / WeightRing::shape_of<Unit>().bytes());
    weights.init(lane);
    weights.active = true;
    weights.end = weights.asked = args.input.units;
    weights.free = weights.stages;
    weights.template announce<Unit>(weights_of(args, config, first_item, rank, warp), lane);
  }
  __syncwarp();
  meet_cluster();
  wait_for_previous();
  if (warpgroup == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp == 9) {
      int turn = 0;
      for (int item = first_item; item < items; item += stride, ++turn) {
        wait_for_phase(memory.factors_empty(turn % 2), (turn / 2 & 1) ^ 1);
        const TileItem next = item_at(config, item, rank);
        bring_factors<kTokens>(args, memory.factors(turn % 2), next.token_block, lane);
        arrive_if(true, memory.factors_full(turn % 2));
        if (!args.add_to_out) continue;
        if constexpr (kTokens == 128) {
          wait_for_phase(memory.old_empty(), (turn & 1) ^ 1);
          bring_old(args, config, next, memory, lane);
        } else {
          request_old<kTokens>(args, config, next, lane);
        }
      }
    } else if (kElects<kTokens> ? warp == 8 : threadIdx.x == 256) {
      OperandSource<kTokens> source;
      source.x = reinterpret_cast<const std::byte*>(args.input.x);
      source.step_bytes = static_cast<int64_t>(args.input.groups) * 256;
      source.rank = rank;
      source.ranks = 3;
      for (int item = first_item; item < items; item += stride) {
        source.bring(memory, item_at(config, item, rank).token_block, 0, args.input.units);
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    OperandRing x;
    x.memory = memory.x();
    x.full = memory.x_full();
    x.empty = memory.x_empty();
    x.stages = config.x_stages;
    int turn = 0;
#pragma unroll 1
    for (int index = first_item; index < items; index += stride, ++turn) {
      weights.template announce<Unit>(weights_of(args, config, index + stride, rank, warp), lane);
      const TileItem item = item_at(config, index, rank);
      const int task_index = task_of(args, config, item.row_block, warp);
      const LinearTask& task = args.tasks[task_index];
      float acc[kTokens / 2];
      multiply_slices<Unit, kTokens>(
          weights, x,
          config.whole_k ? args.input.units : SliceUnits(task.weight.tiles, args.input.units), lane,
          acc);
      const int tile = tile_of(args, config, item.row_block, warp, task_index);
      const Place place = place_of<kTokens>(args, task, tile, item.token_block, lane, 0);
      wait_for_phase(memory.factors_full(turn % 2), turn / 2 & 1);
      finish(task, place, memory.factors(turn % 2), acc);
      arrive_if(true, memory.factors_empty(turn % 2));
      if (args.gated) {
        write_gated(args, place, memory.exchange(), warpgroup, acc);
      } else if (kTokens == 128 && args.add_to_out) {
        wait_for_phase(memory.old_full(), turn & 1);
        add_old(args, task, place, old_of(memory.old(), warp, lane), acc);
        arrive_if(true, memory.old_empty());
      } else {
        write<0, kTokens / 2, kTokens != 128>(args, task, place, acc);
      }
    }
    __syncwarp();
  }
  // The other block's copies and arrivals come here until it is done.
  meet_cluster();
#endif
}

template <typename Kernel>
cudaError_t RunKernel(const Kernel& kernel, const LinearArgs& args, const LinearConfig& config,
                      cudaStream_t stream) {
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(config.blocks)),
                             .block = dim3(kThreads),
                             .shared_bytes = static_cast<size_t>(config.shared_bytes),
                             .cluster = static_cast<unsigned>(config.cluster)};
  return Launch(stream, shape, kernel, args, config);
}

template <typename Unit>
cudaError_t Run(const LinearArgs& args, const LinearConfig& config, cudaStream_t stream) {
  if (config.tokens == 128) return RunKernel(linear_tiles<Unit, 128>, args, config, stream);
  switch (config.cluster) {
    case 8:
      return RunKernel(linear_tiles_spread<Unit, 256, 4>, args, config, stream);
    case 4:
      return RunKernel(linear_tiles_spread<Unit, 256, 2>, args, config, stream);
    default:
      return RunKernel(linear_tiles<Unit, 256>, args, config, stream);
  }
}

}  // namespace tiles
}  // namespace sluice::kernels::cuda
