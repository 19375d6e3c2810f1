#pragma once

// Shared memory of a block of the persistent decode kernel.

#include "kernels/cuda/decode_program.h"
#include "kernels/cuda/decode_ring.cuh"

namespace sluice::kernels::cuda {

struct DecodeShared {
  DecodeStage* stages;  // [num_stages]
  DecodeTask* tasks;    // [num_tasks]
  float* residual;      // [E], zeros up to a unit
  uint4* row;           // operands of the row that the stage's products read; from here on also
                        // the scratch of attention
  float* values;        // [kept_cols]: the row before it is rounded
  float* norm;          // [E]: weights of the norm in front of the row
  float2* rotations;    // [D / 2] (cos, sin) of the position
  float* parts;         // [teams][2][group_items][16]: sums of items, two groups in turn
  float* reduce;        // [2][16]
  float* maxima;        // [16]
  int32_t* shift;       // of the row
  uint4* zeros;         // [8], of the tokens that are none
  int32_t* pages;       // of the row
  uint64_t*
      barriers;       // of slots that are full, [warps][kMaxRingSlots], of free ones, of the tables
  uint8_t* contents;  // of the slots, [warps][kMaxRingSlots]
  std::byte* slots;   // [warps][ring_slots]
  DecodeWork work;
  int warps = 0;       // that multiply
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
    s.norm = reinterpret_cast<float*>(memory + layout.norm);
    s.rotations = reinterpret_cast<float2*>(memory + layout.rotations);
    s.parts = reinterpret_cast<float*>(memory + layout.parts);
    s.reduce = reinterpret_cast<float*>(memory + layout.reduce);
    s.maxima = s.reduce + 32;
    s.shift = reinterpret_cast<int32_t*>(s.reduce + 48);
    s.zeros = reinterpret_cast<uint4*>(memory + layout.zeros);
    s.barriers = reinterpret_cast<uint64_t*>(memory + layout.barriers);
    s.contents = reinterpret_cast<uint8_t*>(memory + layout.contents);
    s.pages = reinterpret_cast<int32_t*>(memory + layout.pages);
    s.slots = memory + layout.slots;
    s.work = {s.stages, s.tasks, args.num_stages};
    s.warps = args.form.warps();
    return s;
  }

  __device__ int num_barriers() const { return 2 * warps * kMaxRingSlots + 1; }
  __device__ uint64_t* table_barrier() const { return barriers + num_barriers() - 1; }
  __device__ RingSlots ring_of(const DecodeArgs& args, int warp) const {
    return {.slots = slots + warp * args.ring_slots * args.slot_bytes,
            .full = barriers + warp * kMaxRingSlots,
            .free = barriers + (warps + warp) * kMaxRingSlots,
            .contents = contents + warp * kMaxRingSlots,
            .num_slots = args.ring_slots,
            .slot_bytes = args.slot_bytes};
  }
  // Asks for the program; table_barrier() tells when it is there.
  __device__ void request_tables(const DecodeArgs& args) const {
    static_assert(sizeof(DecodeStage) % 16 == 0 && sizeof(DecodeTask) % 16 == 0);
    if (threadIdx.x != 0) return;
    const auto stage_bytes = static_cast<uint32_t>(args.num_stages * sizeof(DecodeStage));
    const auto task_bytes = static_cast<uint32_t>(args.num_tasks * sizeof(DecodeTask));
    expect_bytes(table_barrier(), stage_bytes + task_bytes);
    copy_bulk(reinterpret_cast<std::byte*>(stages), args.stages, stage_bytes, table_barrier());
    copy_bulk(reinterpret_cast<std::byte*>(tasks), args.tasks, task_bytes, table_barrier());
  }
};

}  // namespace sluice::kernels::cuda
