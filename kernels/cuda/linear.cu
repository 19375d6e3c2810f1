// linear_slices: a block has 16 weight rows of one task and up to 64 tokens; each of its 8 warps
// one K slice of them. Grid (tiles of 16 rows over all tasks, blocks of tokens), 256 threads,
// 16 x (8 T + 1) x 8 x 4 bytes of shared memory for T token tiles. Reads every weight once a block
// of tokens and the operands of its tokens once a tile of rows; writes 16 x 8 T floats.
// Figures: docs/performance.md.

#include "kernels/cuda/device.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/mma.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr int kThreads = 32 * kMaxSlices;

// Activations were written by the kernel before: never through the non-coherent path, and not
// through L1, which may hold what stood there before this kernel was started early.
__device__ __forceinline__ uint4 load_operand(const uint4* p) { return __ldcg(p); }

// Two of a unit's four steps for all token tiles.
template <typename Unit, int kTiles, int kHalf>
__device__ __forceinline__ void half_unit(const Unit& unit, const uint4* x, int64_t tile_stride,
                                          int lane, float (&acc)[kTiles][4]) {
  uint4 b[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) b[n] = load_operand(x + n * tile_stride + kHalf * 32 + lane);
  uint32_t a[4];
  unit.template fragment<2 * kHalf>(lane, a);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) mma_step(acc[n], a, b[n].x, b[n].y);
  unit.template fragment<2 * kHalf + 1>(lane, a);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) mma_step(acc[n], a, b[n].z, b[n].w);
}

template <typename Unit, int kTiles>
__device__ __forceinline__ void slice_product(const PackedView& weight, int tile, int begin,
                                              int end, const uint4* x, int64_t tile_stride,
                                              float (&acc)[kTiles][4]) {
  // Units on their way from memory; more would only cost registers.
  constexpr int kAhead = kTiles <= 2 ? 4 : 2;
  const int lane = threadIdx.x % 32;
  Unit ring[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (begin + i < end) ring[i].load(weight, tile, begin + i, lane);
  }
  wait_for_previous();
  for (int first = begin; first < end; first += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int u = first + i;
      if (u >= end) break;
      const uint4* unit_x = x + static_cast<int64_t>(u) * 64;
      half_unit<Unit, kTiles, 0>(ring[i], unit_x, tile_stride, lane, acc);
      half_unit<Unit, kTiles, 1>(ring[i], unit_x, tile_stride, lane, acc);
      if (u + kAhead < end) ring[i].load(weight, tile, u + kAhead, lane);
    }
  }
}

template <int kTiles>
__global__ void __launch_bounds__(kThreads) linear_slices(const __grid_constant__ LinearArgs args) {
  constexpr int kTokens = 8 * kTiles;
  __shared__ float parts[kMaxSlices][kTileRows][kTokens + 1];
  let_next_start();
  int index = 0;
  while (index + 1 < args.num_tasks &&
         static_cast<int>(blockIdx.x) >= args.tasks[index + 1].first_tile) {
    ++index;
  }
  const LinearTask& task = args.tasks[index];
  const PackedView weight = task.weight;
  const int tile = blockIdx.x - task.first_tile;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int slice_units = SliceUnits(weight.tiles, weight.units);
  const int begin = min(weight.units, warp * slice_units);
  const int end = min(weight.units, begin + slice_units);
  const int64_t tile_stride = static_cast<int64_t>(weight.units) * 64;
  const uint4* x = args.input.x + static_cast<int64_t>(blockIdx.y) * kTiles * tile_stride;

  float acc[kTiles][4] = {};
  with_unit(weight.type, [&]<typename Unit>() {
    slice_product<Unit, kTiles>(weight, tile, begin, end, x, tile_stride, acc);
  });
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      parts[warp][lane / 4 + i / 2 * 8][n * 8 + lane % 4 * 2 + i % 2] = acc[n][i];
    }
  }
  __syncthreads();

  const int num_slices = (weight.units + slice_units - 1) / slice_units;
  for (int i = threadIdx.x; i < kTileRows * kTokens; i += kThreads) {
    const int row = i % kTileRows;
    const int token = i / kTileRows;
    const int n = tile * kTileRows + row;
    const int t = blockIdx.y * kTokens + token;
    if (n >= weight.rows || t >= args.num_tokens) continue;
    float sum = parts[0][row][token];
    for (int s = 1; s < num_slices; ++s) sum = __fadd_rn(sum, parts[s][row][token]);
    sum = __fmul_rn(sum, __ldcg(args.input.factors + t));
    if (weight.row_factors != nullptr) sum = __fmul_rn(sum, weight.row_factors[n]);
    if (task.bias != nullptr) sum = __fadd_rn(sum, task.bias[n]);
    float* out = task.out + static_cast<int64_t>(t) * task.out_stride + n;
    if (args.add_to_out) sum = __fadd_rn(__ldcg(out), __fmul_rn(args.scale, sum));
    *out = sum;
  }
}

template <int kTiles>
cudaError_t LaunchTiles(const LinearArgs& args, const LinearConfig& config, cudaStream_t stream) {
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(config.grid_x), static_cast<unsigned>(config.grid_y)),
      .block = dim3(kThreads)};
  return Launch(stream, shape, linear_slices<kTiles>, args);
}

}  // namespace

int64_t OperandBytes(int64_t max_rows, int64_t cols) {
  const int64_t rows = (max_rows + 63) / 64 * 64;
  return rows * ((cols + kUnitCols - 1) / kUnitCols * kUnitCols) * 2;
}

LinearConfig ConfigureLinear(const LinearArgs& args) {
  LinearConfig config;
  const int tiles = (args.num_tokens + 7) / 8;
  config.token_tiles = tiles <= 1 ? 1 : tiles <= 2 ? 2 : tiles <= 4 ? 4 : 8;
  config.grid_y = (tiles + config.token_tiles - 1) / config.token_tiles;
  for (int i = 0; i < args.num_tasks; ++i) config.grid_x += args.tasks[i].weight.tiles;
  return config;
}

absl::Status LaunchLinear(LinearArgs args, cudaStream_t stream) {
  int32_t first_tile = 0;
  for (int i = 0; i < args.num_tasks; ++i) {
    args.tasks[i].first_tile = first_tile;
    first_tile += args.tasks[i].weight.tiles;
  }
  const LinearConfig config = ConfigureLinear(args);
  cudaError_t error = cudaSuccess;
  switch (config.token_tiles) {
    case 1:
      error = LaunchTiles<1>(args, config, stream);
      break;
    case 2:
      error = LaunchTiles<2>(args, config, stream);
      break;
    case 4:
      error = LaunchTiles<4>(args, config, stream);
      break;
    default:
      error = LaunchTiles<8>(args, config, stream);
  }
  return ToStatus(error, "linear_slices");
}

}  // namespace sluice::kernels::cuda
