#pragma once

// How weights and operand rows flow through shared memory in the products of Hopper cards: in
// stages that one bulk copy or a few bring. Host and device agree on these sizes.

#include <cstdint>

#include "kernels/cuda/linear.h"

namespace sluice::kernels::cuda {

// Weights of one tile of 16 rows: so many units that copies are about two KiB long.
struct StageShape {
  int32_t units = 0;        // in a stage
  int32_t unit_bytes = 0;   // of a unit: quants and the scales of its 16 rows
  int32_t super_bytes = 0;  // of a block of 256; units of a stage may lie in two

  // Where the super words are of a block that does not end in the stage.
  __host__ __device__ constexpr int32_t tail_at() const { return units * unit_bytes + super_bytes; }
  __host__ __device__ constexpr int32_t bytes() const { return tail_at() + super_bytes; }
};

__host__ __device__ constexpr StageShape StageOf(DType type) {
  switch (type) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return {1, 2048, 0};
    case DType::kQ8_0:
      return {2, 1024 + 64, 0};
    case DType::kQ4_0:
    case DType::kIQ4_NL:
      return {4, 512 + 64, 0};
    case DType::kQ4_1:
      return {4, 512 + 128, 0};
    case DType::kQ5_0:
      return {4, 640 + 64, 0};
    case DType::kQ5_1:
      return {4, 640 + 128, 0};
    case DType::kQ2_K:
      return {4, 256 + 64, kSuperBytes};
    case DType::kQ3_K:
      return {4, 384 + 64, kSuperBytes};
    case DType::kQ4_K:
      return {4, 512 + 64, kSuperBytes};
    case DType::kQ5_K:
      return {4, 640 + 64, kSuperBytes};
    case DType::kQ6_K:
      return {4, 768 + 64, kSuperBytes};
  }
  return {};
}

inline constexpr int kMaxStages = 8;

// kStream: warps of a block beside the one that brings operand rows; units of a stage of them.
inline constexpr int kMaxStreamWarpgroups = 4;
constexpr int StreamWarpgroups(int tokens) { return tokens <= 64 ? kMaxStreamWarpgroups : 3; }
// Up to so many tokens of a block its warps multiply quantised weights each for itself, with
// mma.sync; more of them, and half-precision weights, as warpgroups.
inline constexpr int kTokensAlone = 16;
// Blocks of so many warpgroups that the registers of a multiprocessor are shared out to.
constexpr int StreamBlocks(int warpgroups, bool half, int tokens) {
  return warpgroups > 2 ? 1 : half || tokens <= 8 ? 3 : 2;
}
inline bool IsHalf(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}
inline bool AllHalf(const LinearArgs& args) {
  for (int i = 0; i < args.num_tasks; ++i) {
    if (!IsHalf(args.tasks[i].weight.type)) return false;
  }
  return true;
}
__host__ __device__ constexpr int StreamUnits(int tokens) { return tokens < 64 ? 64 / tokens : 1; }
// Floats of a token in what warps leave for the sum over the slices: 16 rows, and a gap that
// spreads tokens over the banks.
inline constexpr int kPartRow = 20;
// Barriers at the beginning of shared memory.
inline constexpr int kStreamBarriers = kMaxStreamWarpgroups * (4 + 2) * kMaxStages;
inline constexpr int kStreamHead = (kStreamBarriers * 8 + 127) / 128 * 128;

// kTiles: two warpgroups of 64 rows, 128 or 256 tokens; stages of 16 KiB of operand rows.
inline constexpr int kMostTilesTokens = 256;
inline constexpr int kMostTilesCluster = 8;
inline constexpr int kTilesRows = 8;  // tiles of 16 in a block
inline constexpr int kTilesStageBytes = 16384;
__host__ __device__ constexpr int TilesStageSteps(int tokens) {  // of 16 columns
  return kTilesStageBytes / (32 * tokens);
}
inline constexpr int kTilesBarriers = 1024;
// And the tokens' factors, of two items.
inline constexpr int kTilesHead = kTilesBarriers + 8 * kMostTilesTokens;
// What the outcome of 128 tokens is added to, and floats from token to token: four more than rows
// spread them over the banks.
inline constexpr int kTilesOldStride = kTilesRows * 16 + 4;
inline constexpr int kTilesOldBytes = 128 * kTilesOldStride * 4;

}  // namespace sluice::kernels::cuda
