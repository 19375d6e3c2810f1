#pragma once

// Shared memory of a block of the persistent decode kernel.

#include "kernels/cuda/decode_program.h"
#include "kernels/cuda/weight_ring.cuh"

namespace sluice::kernels::cuda {

struct DecodeShared {
  DecodeStage* stages;  // [num_stages]
  DecodeTask* tasks;    // [num_tasks]
  float* residual;      // [E], zeros up to a unit
  uint4* row;           // operands of the row that the stage's products read
  float* values;        // [max_cols]: the row before it is rounded; in attention, its scratch
  float2* rotations;    // [D / 2] (cos, sin) of the position
  float* parts;         // [2][16][16]: sums of a group's items, two groups in turn
  float* reduce;        // [2][16]
  int32_t* pages;       // of the row
  uint64_t* barriers;   // [8][kMaxRingSlots]
  std::byte* slots;     // [8][ring_slots]
  DecodeWork work;
  int turn = 0;        // of `reduce`
  int parts_turn = 0;  // of `parts`
  int position = 0;

  __device__ static DecodeShared In(std::byte* memory, const DecodeArgs& args) {
    const DecodeLayout layout = DecodeLayout::Of(args);
    DecodeShared s;
    s.stages = reinterpret_cast<DecodeStage*>(memory + layout.stages);
    s.tasks = reinterpret_cast<DecodeTask*>(memory + layout.tasks);
    s.residual = reinterpret_cast<float*>(memory + layout.residual);
    s.row = reinterpret_cast<uint4*>(memory + layout.row);
    s.values = reinterpret_cast<float*>(memory + layout.values);
    s.rotations = reinterpret_cast<float2*>(memory + layout.rotations);
    s.parts = reinterpret_cast<float*>(memory + layout.parts);
    s.reduce = reinterpret_cast<float*>(memory + layout.reduce);
    s.barriers = reinterpret_cast<uint64_t*>(memory + layout.barriers);
    s.pages = reinterpret_cast<int32_t*>(memory + layout.pages);
    s.slots = memory + layout.slots;
    s.work = {s.stages, s.tasks, args.num_stages};
    return s;
  }

  // Brings the program and the step's pages; a barrier has to follow.
  __device__ void copy_tables(const DecodeArgs& args, const DecodeStep& step) const {
    static_assert(sizeof(DecodeStage) % 8 == 0 && sizeof(DecodeTask) % 8 == 0);
    const auto copy = [](void* to, const void* from, int bytes) {
      for (int i = threadIdx.x; i < bytes / 8; i += blockDim.x) {
        static_cast<uint2*>(to)[i] = __ldg(static_cast<const uint2*>(from) + i);
      }
    };
    copy(stages, args.stages, args.num_stages * static_cast<int>(sizeof(DecodeStage)));
    for (int i = threadIdx.x; i <= step.position / kPageTokens; i += blockDim.x) {
      pages[i] = step.pages[i];
    }
    copy(tasks, args.tasks, args.num_tasks * static_cast<int>(sizeof(DecodeTask)));
  }
};

}  // namespace sluice::kernels::cuda
