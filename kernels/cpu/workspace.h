#pragma once

// Scratch memory of the CPU's ops, reserved once for the largest step.

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/exec.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/sampling.h"
#include "kernels/ops.h"

namespace sluice::kernels::cpu {

// Tokens of one chunk of a product.
inline constexpr int64_t kTokenBlock = 64;
// Panels of one chunk of a product, at most.
inline constexpr int64_t kMaxChunkPanels = 8;

// Where a token's K and V go.
struct TokenPlace {
  int32_t page = 0;
  int32_t slot = 0;        // position inside the page
  int32_t row_offset = 0;  // tokens of the same row before it in this step
};

// Of the step's positions for one rope, by EmbedTokens.
struct Rotations {
  float* cosines = nullptr;  // [T, rotary_size / 2]
  float* sines = nullptr;    // [T, rotary_size / 2]
  int64_t num_tokens = 0;
  int64_t rotary_size = 0;
};

// Owned by the Exec; engine thread, except that each worker writes its own tile.
struct CpuWorkspace : Exec::Workspace {
  // [max(T, R), E], the outcome of the norm in front of a product; or `values` alone: of the
  // product in front of a post norm.
  Activation normed;

  std::array<Rotations, kMaxRopes> rotations;
  std::vector<TokenPlace> places;  // [T]

  float* tile(int worker) const { return tiles + worker * tile_floats; }
  float* tiles = nullptr;   // outcomes of a worker's chunk, [kTokenBlock, rows of the chunk]
  int64_t tile_floats = 0;  // of one worker

  AttentionScratch attention;
  SamplingScratch sampling;

  Buffer storage;
};

inline CpuWorkspace& WorkspaceOf(Exec& exec) {
  return *static_cast<CpuWorkspace*>(exec.workspace());
}

}  // namespace sluice::kernels::cpu
