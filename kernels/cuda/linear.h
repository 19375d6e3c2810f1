#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"

#include "kernels/cuda/packed_weight.h"

namespace sluice::kernels::cuda {

// Rows that products read: f16 operands of mma.sync in the order in which lanes hold them, each row
// times a power of two that brings its largest value into [2^11, 2^12).
//
//   x        [ceil(rows / 8)][units][2][lane] of 16 bytes: lane 4 g + t of half h holds for row g
//            the columns 32 h + 2 t and + 1, + 8, + 9, + 16, + 17, + 24, + 25 of the unit
//   factors  [rows] f32, what a product is multiplied by: the power's inverse
struct OperandRows {
  uint4* x = nullptr;
  float* factors = nullptr;
  int32_t units = 0;  // of 64 columns
};

// Bytes of x for max_rows rows of `cols` columns, padded so that any tile of tokens may be read.
int64_t OperandBytes(int64_t max_rows, int64_t cols);

inline constexpr int kMaxSlices = 8;

// Units of one K slice of a weight of `tiles` x `units`: a function of its shape alone, so that
// every kernel adds the same sums. So few slices that products of many tokens lose nothing by them,
// so many that one token's product, a warp each (tile, slice), fills a card of about 1,056 warps.
__host__ __device__ inline int32_t NumSlicesLog2(int32_t tiles) {
  return tiles >= 768 ? 0 : tiles >= 384 ? 1 : tiles >= 160 ? 2 : 3;
}
__host__ __device__ inline int32_t SliceUnits(int32_t tiles, int32_t units) {
  const int32_t slices = 1 << NumSlicesLog2(tiles);
  return (units + slices - 1) / slices;
}

// One weight matrix of a launch and where its outcome goes.
struct LinearTask {
  PackedView weight;
  const float* bias = nullptr;  // [N] or null
  float* out = nullptr;         // [tokens, out_stride], from column 0
  int32_t out_stride = 0;
  int32_t first_tile = 0;  // in the launch; set by LaunchLinear
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
  int32_t grid_x = 0;       // tiles of 16 weight rows
  int32_t grid_y = 0;       // blocks of tokens
};
LinearConfig ConfigureLinear(const LinearArgs& args);

// The canonical product of every weight type on CUDA: each weight rounded to f16 once, a chain of
// m16n8k16 tensor-core steps in ascending K inside a K slice, slices added ascending in f32, then
// the powers of two, the bias, and last the residual. The same bits for any number of tokens.
absl::Status LaunchLinear(LinearArgs args, cudaStream_t stream);

}  // namespace sluice::kernels::cuda
