#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/cuda/packed_weight.h"
#include "kernels/ops.h"

namespace sluice::kernels::cuda {

// Rows that products read: f16 operands of the tensor cores, each row times a power of two that
// brings its largest value into [2^11, 2^12). The layout is that of wgmma's shared-memory operands
// without swizzle (PTX ISA, "Matrix Fragments for wgmma", core matrices of 8 rows by 16 bytes), so
// that bulk copies bring them as they are; and a core matrix is what the 32 lanes of a warp hold
// for mma.sync, a word each.
//
//   x        [4 units steps of 16 columns][groups of 8 rows][2 core matrices][8 rows][8 f16]
//   factors  [rows] f32, what a product is multiplied by: the power's inverse
struct OperandRows {
  uint4* x = nullptr;
  float* factors = nullptr;
  int32_t units = 0;   // of 64 columns
  int32_t groups = 0;  // of eight rows, padding included: OperandGroups of the step's rows
};

// Groups of eight that num_rows rows take, so that every tile of tokens may be read whole.
constexpr int32_t OperandGroups(int64_t num_rows) {
  for (const int32_t groups : {1, 2, 4, 8, 16}) {
    if (num_rows <= 8 * groups) return groups;
  }
  return static_cast<int32_t>((num_rows + 255) / 256 * 32);
}

// Bytes of x for up to max_rows rows of `cols` columns.
int64_t OperandBytes(int64_t max_rows, int64_t cols);

inline constexpr int kMaxSlices = 8;

// K slices that a weight of `tiles` times 16 rows is cut into, if it has as many units: so few that
// products of many tokens lose nothing by them, so many that one token's product, a warp each
// (tile, slice), fills a card of about 1,056 warps.
__host__ __device__ constexpr int32_t NumSlicesLog2(int32_t tiles) {
  return tiles >= 768 ? 0 : tiles >= 384 ? 1 : tiles >= 160 ? 2 : 3;
}
__host__ __device__ constexpr int32_t SlicesOf(int32_t tiles) { return 1 << NumSlicesLog2(tiles); }
// Units of one of them, the last may be shorter: a function of the weight's shape alone, so that
// every kernel adds the same sums.
__host__ __device__ constexpr int32_t SliceUnits(int32_t tiles, int32_t units) {
  return (units + SlicesOf(tiles) - 1) / SlicesOf(tiles);
}

// One weight matrix of a launch and where its outcome goes.
struct LinearTask {
  PackedView weight;
  const float* bias = nullptr;  // [N] or null
  float* out = nullptr;         // [tokens, out_stride], from column 0
  int32_t out_stride = 0;
};

inline constexpr int kMaxTasks = 3;
struct LinearArgs {
  LinearTask tasks[kMaxTasks];
  int32_t num_tasks = 0;
  OperandRows input;
  int32_t num_tokens = 0;
  float scale = 1.0f;       // of what is added
  bool add_to_out = false;  // out += scale * product, else out = product
  // Tasks are up and gate of one shape: act(gate) * up goes to the first task's out, added to
  // nothing. Where FusesGate says so.
  bool gated = false;
  GateActivation activation = GateActivation::kSilu;
};

// The card that products run on.
struct LinearDevice {
  bool has_wgmma = false;  // compute capability 9.0, and a build with code for 9.0a
  int32_t multiprocessors = 132;
  // Fast numerics: products of more than 128 tokens take K whole, so that their bits are not those
  // of fewer.
  bool whole_k = false;
};
// Of the calling thread's device.
absl::StatusOr<LinearDevice> FindLinearDevice();

// The kernels of a product, by what they are made for:
//   kSlices    any card: mma.sync, a warp each (16 rows, slice)
//   kStream    9.0, few tokens: weights flow through shared memory, all slices at once
//   kTiles128  9.0, more than 128 tokens: 128 rows by 128 tokens, the slices one after the other
//   kTiles256  128 rows by 256 tokens, slices side by side in the pairs of a cluster's blocks;
//   where
//              there are too few for them, kTiles128
enum class LinearPath : uint8_t { kSlices, kStream, kTiles128, kTiles256 };

// Configuration of a launch, a pure function of the problem. Of a product on kTiles128 the last
// round may become a second launch.
struct LinearConfig {
  LinearPath path = LinearPath::kSlices;
  int32_t tokens = 0;  // of one block
  int32_t grid_x = 0;  // blocks of weight rows, times the cluster
  int32_t grid_y = 0;  // blocks of tokens
  int32_t blocks = 0;  // launched (kTiles)
  // Of the items, which are pairs of blocks of rows times blocks of tokens, tokens first: those of
  // this launch (kTiles).
  int32_t first_item = 0;
  int32_t end_item = 0;
  int32_t cluster = 1;  // blocks along x
  int32_t threads = 0;
  int32_t shared_bytes = 0;
  struct Task {
    int32_t first_block = 0;    // in the launch, in clusters
    int32_t tiles_a_block = 0;  // of 16 rows
    int32_t slice_groups = 1;   // of warpgroups in one block, a slice each (kStream)
  } tasks[kMaxTasks];
  int32_t ring_bytes = 0;  // of weights on their way to one warp
  int32_t x_stages = 0;    // of operand rows on their way to one slice
  int32_t x_rings = 0;     // such rings in one block (kStream)
  bool whole_k = false;    // one slice, whatever the shape (kTiles)
};
// `path`: that one, where the device has it, instead of the quickest.
LinearConfig ConfigureLinear(const LinearArgs& args, const LinearDevice& device,
                             std::optional<LinearPath> path = std::nullopt);
std::string Describe(const LinearConfig& config);

// True when LaunchLinear takes products with gates.
bool FusesGate(const LinearDevice& device);

// The canonical product of every weight type on CUDA: each weight rounded to f16 once, a chain of
// m16n8k16 tensor-core steps in ascending K inside a K slice, slices added ascending in f32, then
// the powers of two, the bias, and last the residual (or the gate). The same bits for any number of
// tokens and on every path.
absl::Status LaunchLinear(const LinearArgs& args, const LinearDevice& device, cudaStream_t stream,
                          std::optional<LinearPath> path = std::nullopt);

}  // namespace sluice::kernels::cuda
