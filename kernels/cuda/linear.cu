// linear_slices: the product on any card. A block has up to 64 tokens and 16 weight rows of one
// task for every warp that a K slice of them leaves over: 8 warps, a (tile, slice) each. Grid
// (blocks of rows over all tasks, blocks of tokens), 256 threads, 8 x 16 x (8 T + 1) x 4 bytes of
// shared memory for T token tiles. Reads every weight once a block of tokens and the operands of
// its tokens once a block of rows. Figures: docs/performance.md.

#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_stage.h"
#include "kernels/cuda/mma.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr int kWarps = kMaxSlices;
constexpr int kThreads = 32 * kWarps;

// One step of 16 columns for all token tiles. Activations were written by the kernel before: never
// through the non-coherent path, and not through L1, which may hold what stood there before this
// kernel was started early.
template <typename Unit, int kTiles, int kStep>
__device__ __forceinline__ void unit_step(const Unit& unit, const uint32_t* x, int lane,
                                          float (&acc)[kTiles][4]) {
  uint32_t b[kTiles][2];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    b[n][0] = __ldcg(x + n * 64 + lane);
    b[n][1] = __ldcg(x + n * 64 + 32 + lane);
  }
  uint32_t a[4];
  unit.template fragment<kStep>(lane, a);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) mma_step(acc[n], a, b[n][0], b[n][1]);
}

// `x`: of step 0 and the block's first group of tokens.
template <typename Unit, int kTiles>
__device__ __forceinline__ void slice_product(const PackedView& weight, int tile, int begin,
                                              int end, const uint32_t* x, int64_t step_stride,
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
      const uint32_t* step = x + u * 4 * step_stride;
      unit_step<Unit, kTiles, 0>(ring[i], step, lane, acc);
      unit_step<Unit, kTiles, 1>(ring[i], step + step_stride, lane, acc);
      unit_step<Unit, kTiles, 2>(ring[i], step + 2 * step_stride, lane, acc);
      unit_step<Unit, kTiles, 3>(ring[i], step + 3 * step_stride, lane, acc);
      if (u + kAhead < end) ring[i].load(weight, tile, u + kAhead, lane);
    }
  }
}

template <int kTiles>
using Parts = float[kWarps][kTileRows][8 * kTiles + 1];

// Adds the slices of the block's tiles and writes them; `parts` of one tile follow each other.
template <int kTiles>
__device__ __forceinline__ void finish_tiles(const LinearArgs& args, const LinearTask& task,
                                             int first_tile, const Parts<kTiles>& parts) {
  const PackedView& weight = task.weight;
  const int slices = SlicesOf(weight.tiles);
  const int slice_units = SliceUnits(weight.tiles, weight.units);
  const int num_slices = (weight.units + slice_units - 1) / slice_units;
  const int num_rows = kWarps / slices * kTileRows;
  for (int i = threadIdx.x; i < num_rows * 8 * kTiles; i += kThreads) {
    const int inside = i % num_rows / kTileRows;
    const int row = i % kTileRows;
    const int token = i / num_rows;
    const int n = (first_tile + inside) * kTileRows + row;
    const int t = blockIdx.y * 8 * kTiles + token;
    if (n >= weight.rows || t >= args.num_tokens) continue;
    const int warp = inside * slices;
    float sum = parts[warp][row][token];
    for (int s = 1; s < num_slices; ++s) sum = __fadd_rn(sum, parts[warp + s][row][token]);
    sum = __fmul_rn(sum, __ldcg(args.input.factors + t));
    if (weight.row_factors != nullptr) sum = __fmul_rn(sum, weight.row_factors[n]);
    if (task.bias != nullptr) sum = __fadd_rn(sum, task.bias[n]);
    float* out = task.out + static_cast<int64_t>(t) * task.out_stride + n;
    if (args.add_to_out) sum = __fadd_rn(__ldcg(out), __fmul_rn(args.scale, sum));
    *out = sum;
  }
}

template <int kTiles>
__global__ void __launch_bounds__(kThreads)
    linear_slices(const __grid_constant__ LinearArgs args,
                  const __grid_constant__ LinearConfig config) {
  __shared__ Parts<kTiles> parts;
  let_next_start();
  int index = 0;
  while (index + 1 < args.num_tasks &&
         static_cast<int>(blockIdx.x) >= config.tasks[index + 1].first_block) {
    ++index;
  }
  const LinearTask& task = args.tasks[index];
  const PackedView weight = task.weight;
  const int slices = SlicesOf(weight.tiles);
  const int first_tile = (blockIdx.x - config.tasks[index].first_block) * (kWarps / slices);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int tile = first_tile + warp / slices;
  const int slice_units = SliceUnits(weight.tiles, weight.units);
  const int begin = tile < weight.tiles ? min(weight.units, warp % slices * slice_units) : 0;
  const int end = tile < weight.tiles ? min(weight.units, begin + slice_units) : 0;
  const int64_t step_stride = static_cast<int64_t>(args.input.groups) * 64;
  const auto* x = reinterpret_cast<const uint32_t*>(args.input.x) + blockIdx.y * kTiles * 64;

  float acc[kTiles][4] = {};
  with_unit(weight.type, [&]<typename Unit>() {
    slice_product<Unit, kTiles>(weight, tile, begin, end, x, step_stride, acc);
  });
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      parts[warp][lane / 4 + i / 2 * 8][n * 8 + lane % 4 * 2 + i % 2] = acc[n][i];
    }
  }
  __syncthreads();
  finish_tiles<kTiles>(args, task, first_tile, parts);
}

template <int kTiles>
cudaError_t Run(const LinearArgs& args, const LinearConfig& config, cudaStream_t stream) {
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(config.grid_x), static_cast<unsigned>(config.grid_y)),
      .block = dim3(kThreads)};
  return Launch(stream, shape, linear_slices<kTiles>, args, config);
}

cudaError_t LaunchTilesOf(DType type, const LinearArgs& args, const LinearConfig& config,
                          cudaStream_t stream) {
  if (IsHalf(type)) return LaunchTilesHalf(args, config, stream);
  return Traits(type).block_values == 256 ? LaunchTilesSuper(args, config, stream)
                                          : LaunchTilesLegacy(args, config, stream);
}

// Tasks of different types one after the other: linear_tiles is compiled for each. `asked`: `path`
// was asked for, so that a last round takes no other.
cudaError_t LaunchTiles(const LinearArgs& args, const LinearDevice& device, LinearPath path,
                        bool asked, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for (int first = 0; first < args.num_tasks && error == cudaSuccess;) {
    LinearArgs same = args;
    same.num_tasks = 0;
    const DType type = args.tasks[first].weight.type;
    while (first < args.num_tasks && args.tasks[first].weight.type == type) {
      same.tasks[same.num_tasks++] = args.tasks[first++];
    }
    std::vector<LinearConfig> launches = {ConfigureLinear(same, device, path)};
    if (!asked) launches = TilesLaunches(same, launches[0], device);
    for (const LinearConfig& launch : launches) {
      if (error == cudaSuccess) error = LaunchTilesOf(type, same, launch, stream);
    }
  }
  return error;
}

const KernelModule kModule(linear_slices<1>);

}  // namespace

cudaError_t LaunchSlices(const LinearArgs& args, const LinearConfig& config, cudaStream_t stream) {
  switch (config.tokens) {
    case 8:
      return Run<1>(args, config, stream);
    case 16:
      return Run<2>(args, config, stream);
    case 32:
      return Run<4>(args, config, stream);
    default:
      return Run<8>(args, config, stream);
  }
}

namespace {

absl::Status LaunchWith(const LinearArgs& args, const LinearConfig& config,
                        const LinearDevice& device, bool asked, cudaStream_t stream) {
  if (args.gated && args.add_to_out) {
    return absl::InvalidArgumentError("a product with gates: expected nothing to add to");
  }
  switch (config.path) {
    case LinearPath::kStream:
      return ToStatus(config.tokens <= 32 ? LaunchStreamFew(args, config, stream)
                                          : LaunchStreamMany(args, config, stream),
                      "linear_stream");
    case LinearPath::kTiles128:
    case LinearPath::kTiles256:
      return ToStatus(LaunchTiles(args, device, config.path, asked, stream), "linear_tiles");
    default:
      return ToStatus(LaunchSlices(args, config, stream), "linear_slices");
  }
}

}  // namespace

absl::StatusOr<LinearDevice> FindLinearDevice() {
  LinearDevice device;
  int index = 0;
  int major = 0;
  cudaError_t error = cudaGetDevice(&index);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index);
  }
  if (error != cudaSuccess) return ToStatus(error, "facts of the device");
  device.has_wgmma = major == 9 && HasWgmmaCode();
  return device;
}

absl::Status LaunchLinear(const LinearArgs& args, const LinearDevice& device, cudaStream_t stream,
                          std::optional<LinearPath> path) {
  return LaunchWith(args, ConfigureLinear(args, device, path), device, path.has_value(), stream);
}

absl::Status LaunchLinearAs(const LinearArgs& args, const LinearConfig& config,
                            const LinearDevice& device, cudaStream_t stream) {
  return LaunchWith(args, config, device, true, stream);
}

}  // namespace sluice::kernels::cuda
