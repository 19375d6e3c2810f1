#pragma once

// Shared memory of a block of the persistent decode kernel.

#include "kernels/cuda/decode_program.h"
#include "kernels/cuda/decode_ring.cuh"

namespace sluice::kernels::cuda {

// Where arrays lie is in the kernel's arguments, so that pointers to them take no registers.
class DecodeShared {
 public:
  __device__ DecodeShared(std::byte* memory, const DecodeArgs& args)
      : memory_(memory),
        layout_(args.layout),
        warps_(args.form.warps()),
        num_ring_barriers_(args.form.ring_barriers()) {}

  __device__ DecodeWork work(const DecodeTables& tables) const {
    const std::byte* begin = at<std::byte>(layout_.tables);
    return {reinterpret_cast<const DecodeStage*>(begin),
            reinterpret_cast<const DecodeTask*>(begin + tables.tasks_at),
            reinterpret_cast<const DecodeShape*>(begin + tables.shapes_at), tables.num_stages};
  }
  __device__ const DecodeCache* caches(const DecodeTables& tables) const {
    return at<DecodeCache>(layout_.tables + tables.caches_at);
  }
  // Operands of the row that the stage's products read; from here on also the scratch of attention.
  __device__ uint4* row() const { return at<uint4>(layout_.row); }
  // [kept_cols]: the row before it is rounded. This and norm() may lie where longer rows, of
  // products without a norm, have their end.
  __device__ float* values() const { return at<float>(layout_.values); }
  // [E]: weights of the norm in front of the row.
  __device__ float* norm() const { return at<float>(layout_.norm); }
  // [D / 2] (cos, sin) of the position.
  __device__ float2* rotations() const { return at<float2>(layout_.rotations); }
  // [teams][2][kMaxGroupItems][16]: sums of items, two groups in turn.
  __device__ float* parts() const { return at<float>(layout_.parts); }
  // [2][16], in turn.
  __device__ float* reduce() const { return at<float>(layout_.reduce); }
  __device__ float* maxima() const { return reduce() + 32; }  // [32]
  // Of the row.
  __device__ int32_t* shift() const { return at<int32_t>(layout_.reduce) + 64; }
  // [8], of the tokens that are none.
  __device__ uint4* zeros() const { return at<uint4>(layout_.zeros); }
  // Of slots, [full, free, or also arrived][warps][kMaxRingSlots]; of the tables.
  __device__ uint64_t* barriers() const { return at<uint64_t>(layout_.barriers); }
  __device__ uint64_t* table_barrier() const { return barriers() + num_ring_barriers_; }
  // That end a phase of barrier i: of all lanes of the warp that frees a slot or makes operands in
  // it, for each vouches for what it did itself; of the one that asks for a copy.
  __device__ int arrivals(const DecodeArgs& args, int i) const {
    const int kind = i / (warps_ * kMaxRingSlots);
    const bool by_lanes = kind == 1 || (kind == 0 && args.form.prepares && args.has_quants);
    return by_lanes ? 32 : 1;
  }
  __device__ RingSlots ring_of(const DecodeArgs& args, int warp) const {
    return {.slots = at<std::byte>(layout_.slots) + warp * args.ring_slots * args.slot_bytes,
            .full = barriers() + warp * kMaxRingSlots,
            .free = barriers() + (warps_ + warp) * kMaxRingSlots,
            .arrived = barriers() + (2 * warps_ + warp) * kMaxRingSlots,
            .contents = at<uint8_t>(layout_.contents) + warp * kMaxRingSlots,
            .num_slots = args.ring_slots,
            .slot_bytes = args.slot_bytes};
  }
  // Asks for the program; table_barrier() tells when it is there.
  __device__ void request_tables(const DecodeTables& tables) const {
    if (threadIdx.x != 0) return;
    const auto bytes = static_cast<uint32_t>(tables.bytes);
    expect_bytes(table_barrier(), bytes);
    copy_bulk(at<std::byte>(layout_.tables), tables.at, bytes, table_barrier());
  }

  int turn = 0;        // of reduce()
  int parts_turn = 0;  // of parts()
  int position = 0;
  const int32_t* pages = nullptr;  // of positions up to it

 private:
  template <typename T>
  __device__ T* at(int32_t offset) const {
    return reinterpret_cast<T*>(memory_ + offset);
  }

  std::byte* memory_;
  const DecodeLayout& layout_;
  int warps_;  // that multiply
  int num_ring_barriers_;
};

}  // namespace sluice::kernels::cuda
