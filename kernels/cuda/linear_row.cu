// linear_row: the product of one token with up to three matrices. Every block makes the token's
// operand row for itself (norm, gate or merged attention, all in L2), with the weights of its first
// tiles already on their way, then goes through tiles of 16 rows of one task, as many at a time as
// its 8 warps have K slices for. Grid (blocks shared out among the tasks), 256 threads, 6 bytes of
// shared memory a column. Figures: docs/performance.md.

#include "kernels/cuda/device.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/linear_row.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/row_sources.cuh"

namespace sluice::kernels::cuda {
namespace {

// Units on their way from memory in each warp.
constexpr int kAhead = 4;
// Blocks of a launch: two on each of 132 multiprocessors.
constexpr int kMaxBlocks = 264;

struct SharedRow {
  float reduce[16];
  float factor;
  float parts[2][kMaxSlices][kTileRows];
};

// The tiles and units that one warp goes through: tile `first`, `first + stride`, ..., of each the
// units [begin, end).
struct WarpPath {
  int first, stride, num_tiles, begin, end;

  __device__ int num_steps() const {
    if (begin >= end || first >= num_tiles) return 0;
    return ((num_tiles - first + stride - 1) / stride) * (end - begin);
  }
  __device__ int tile(int step) const { return first + step / (end - begin) * stride; }
  __device__ int unit(int step) const { return begin + step % (end - begin); }
};

template <typename Unit>
__device__ __forceinline__ void lone_unit(const Unit& unit, const uint4* row, int lane,
                                          float (&acc)[4]) {
  // Only column 0 of the eight is a token: the four lanes that hold it.
  const uint4 zero = make_uint4(0, 0, 0, 0);
  uint32_t a[4];
  const uint4 low = lane < 4 ? row[lane] : zero;
  unit.template fragment<0>(lane, a);
  mma_step(acc, a, low.x, low.y);
  unit.template fragment<1>(lane, a);
  mma_step(acc, a, low.z, low.w);
  const uint4 high = lane < 4 ? row[4 + lane] : zero;
  unit.template fragment<2>(lane, a);
  mma_step(acc, a, high.x, high.y);
  unit.template fragment<3>(lane, a);
  mma_step(acc, a, high.z, high.w);
}

// Adds the slices of the tiles from `first_tile` on; `parts` of one tile follow each other.
__device__ void finish_tiles(const LinearRowArgs& args, const LinearTask& task, int first_tile,
                             float factor, const float (&parts)[kMaxSlices][kTileRows]) {
  const int slices = SlicesOf(task.weight.tiles);
  const int inside = threadIdx.x / kTileRows;
  const int row = threadIdx.x % kTileRows;
  const int n = (first_tile + inside) * kTileRows + row;
  if (inside >= kMaxSlices / slices || n >= task.weight.rows) return;
  const int slice_units = SliceUnits(task.weight.tiles, task.weight.units);
  const int num_slices = (task.weight.units + slice_units - 1) / slice_units;
  float sum = parts[inside * slices][row];
  for (int s = 1; s < num_slices; ++s) sum = __fadd_rn(sum, parts[inside * slices + s][row]);
  sum = __fmul_rn(sum, factor);
  if (task.weight.row_factors != nullptr) sum = __fmul_rn(sum, task.weight.row_factors[n]);
  if (task.bias != nullptr) sum = __fadd_rn(sum, task.bias[n]);
  float* out = task.out + n;
  if (args.add_to_out) sum = __fadd_rn(__ldcg(out), __fmul_rn(args.scale, sum));
  *out = sum;
}

// Sixteen bytes of the operand row: columns 0, 1, 8, 9, 16, 17, 24, 25 of `values` times `scale`.
__device__ __forceinline__ uint4 operand_words(const float* values, float scale) {
  uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const __half2 pair =
        __floats2half2_rn(__fmul_rn(values[8 * w], scale), __fmul_rn(values[8 * w + 1], scale));
    memcpy(&words[w], &pair, 4);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Fills `row` with the token's operands; all threads.
__device__ void make_row(const LinearRowArgs& args, float* values, uint4* row, SharedRow& shared) {
  int shift = 0;
  if (args.source == RowSource::kNorm) {
    shift = load_norm_row(args.norm, 0, values, shared.reduce);
  } else {
    if (args.source == RowSource::kGate) {
      load_gate_row(args.gate, 0, values, nullptr);
    } else {
      load_attention_row(args.attention, 0, values, nullptr);
    }
    shift = operand_shift(values, args.units, shared.reduce);
  }
  if (threadIdx.x == 0) shared.factor = power_of_two(-shift);
  for (int i = threadIdx.x; i < args.units * 8; i += kRowThreads) {
    row[i] = operand_words(values + i / 4 * 32 + i % 4 * 2, power_of_two(shift));
  }
  __syncthreads();
}

// A unit of any type as it was loaded, so that the code between loading and use exists once.
struct RawUnit {
  uint32_t words[16];
};

template <typename Unit>
__device__ __forceinline__ void load_raw(const PackedView& weight, const WarpPath& path,
                                         int num_steps, RawUnit (&raw)[kAhead]) {
  static_assert(sizeof(Unit) <= sizeof(RawUnit));
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    Unit unit;
    if (i < num_steps) unit.load(weight, path.tile(i), path.unit(i), threadIdx.x % 32);
    memcpy(raw[i].words, &unit, sizeof(Unit));
  }
}

template <typename Unit>
__device__ __forceinline__ void run_tiles(const LinearRowArgs& args, const LinearTask& task,
                                          const WarpPath& path, int num_steps,
                                          const RawUnit (&raw)[kAhead], const uint4* row,
                                          SharedRow& shared) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  Unit ring[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) memcpy(&ring[i], raw[i].words, sizeof(Unit));
  const int tiles_at_once = kMaxSlices / SlicesOf(task.weight.tiles);
  // The block's first tile: all warps go round as often as it takes.
  const int block_first = path.first / tiles_at_once * tiles_at_once;
  int turn = 0;
  int step = 0;
  for (int tile = block_first; tile < path.num_tiles; tile += path.stride) {
    float acc[4] = {};
    const bool inside = tile - block_first + path.first < path.num_tiles;
    for (int unit = path.begin; inside && unit < path.end; ++unit, ++step) {
      lone_unit(ring[0], row + unit * 8, lane, acc);
#pragma unroll
      for (int i = 0; i + 1 < kAhead; ++i) ring[i] = ring[i + 1];
      const int next = step + kAhead;
      if (next < num_steps) {
        ring[kAhead - 1].load(task.weight, path.tile(next), path.unit(next), lane);
      }
    }
    if (lane % 4 == 0) {
      shared.parts[turn][warp][lane / 4] = acc[0];
      shared.parts[turn][warp][lane / 4 + 8] = acc[2];
    }
    __syncthreads();
    finish_tiles(args, task, tile, shared.factor, shared.parts[turn]);
    turn ^= 1;
  }
}

__global__ void __launch_bounds__(32 * kMaxSlices)
    linear_row(const __grid_constant__ LinearRowArgs args) {
  extern __shared__ float values[];
  __shared__ SharedRow shared;
  uint4* row = reinterpret_cast<uint4*>(values + args.units * kUnitCols);
  let_next_start();
  int index = 0;
  while (index + 1 < args.num_tasks &&
         static_cast<int>(blockIdx.x) >= args.first_block[index + 1]) {
    ++index;
  }
  const LinearTask& task = args.tasks[index];
  const int slice_units = SliceUnits(task.weight.tiles, task.weight.units);
  const int slices = SlicesOf(task.weight.tiles);
  const int warp = threadIdx.x / 32;
  WarpPath path;
  path.first = (blockIdx.x - args.first_block[index]) * (kMaxSlices / slices) + warp / slices;
  path.stride = (args.first_block[index + 1] - args.first_block[index]) * (kMaxSlices / slices);
  path.num_tiles = task.weight.tiles;
  path.begin = min(task.weight.units, warp % slices * slice_units);
  path.end = min(task.weight.units, path.begin + slice_units);
  const int num_steps = path.num_steps();
  RawUnit raw[kAhead];
  with_unit(task.weight.type,
            [&]<typename Unit>() { load_raw<Unit>(task.weight, path, num_steps, raw); });
  wait_for_previous();
  make_row(args, values, row, shared);
  with_unit(task.weight.type, [&]<typename Unit>() {
    run_tiles<Unit>(args, task, path, num_steps, raw, row, shared);
  });
}

const KernelModule kModule(linear_row);

}  // namespace

absl::Status LaunchLinearRow(LinearRowArgs args, cudaStream_t stream) {
  // Blocks that would have each tile once.
  const auto wanted = [](const PackedView& weight) {
    const int tiles_at_once = kMaxSlices / SlicesOf(weight.tiles);
    return (weight.tiles + tiles_at_once - 1) / tiles_at_once;
  };
  int total = 0;
  for (int i = 0; i < args.num_tasks; ++i) total += wanted(args.tasks[i].weight);
  int blocks = 0;
  for (int i = 0; i < args.num_tasks; ++i) {
    const int all = wanted(args.tasks[i].weight);
    args.first_block[i] = blocks;
    const int share =
        total <= kMaxBlocks ? all : static_cast<int>(int64_t{all} * kMaxBlocks / total);
    blocks += share < 1 ? 1 : share;
  }
  for (int i = args.num_tasks; i <= kMaxTasks; ++i) args.first_block[i] = blocks;
  const size_t bytes = static_cast<size_t>(args.units) * (kUnitCols * sizeof(float) + 128);
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(blocks)),
                             .block = dim3(32 * kMaxSlices),
                             .shared_bytes = bytes};
  return ToStatus(Launch(stream, shape, linear_row, args), "linear_row");
}

}  // namespace sluice::kernels::cuda
