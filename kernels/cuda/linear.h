#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"

#include "kernels/cuda/packed_weight.h"

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
  int32_t first_block = 0;  // in the launch; set by LaunchLinear
};

inline constexpr int kMaxTasks = 3;
struct LinearArgs {
  LinearTask tasks[kMaxTasks];
  int32_t num_tasks = 0;
  OperandRows input;
  int32_t num_tokens = 0;
  float scale = 1.0f;       // of what is added
  bool add_to_out = false;  // out += scale * product, else out = product
};

// Configuration of a launch, a pure function of the problem.
struct LinearConfig {
  int32_t token_tiles = 0;  // of eight tokens, in one block: 1, 2, 4 or 8
  int32_t grid_x = 0;       // blocks of weight rows
  int32_t grid_y = 0;       // blocks of tokens
};
LinearConfig ConfigureLinear(const LinearArgs& args);

// The canonical product of every weight type on CUDA: each weight rounded to f16 once, a chain of
// m16n8k16 tensor-core steps in ascending K inside a K slice, slices added ascending in f32, then
// the powers of two, the bias, and last the residual. The same bits for any number of tokens.
absl::Status LaunchLinear(LinearArgs args, cudaStream_t stream);

}  // namespace sluice::kernels::cuda
