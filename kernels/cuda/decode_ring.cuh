#pragma once

// The weights that one warp of the persistent decode kernel multiplies by, in the order in which it
// needs them, through a ring of its own in shared memory: as soon as a chunk has been used its slot
// is filled with the chunk `num_slots` ahead, whatever stage that belongs to. Bulk copies bring it
// (PTX ISA, cp.async.bulk), an mbarrier a slot tells when it is there.

#include "kernels/cuda/decode_program.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/shared_tiles.cuh"

namespace sluice::kernels::cuda {

// A slot: quants of at most four units of a tile (two of half-precision weights), then scales, then
// the words of K-quants' blocks of 256.
inline constexpr int kSlotScalesAt = 4096;
inline constexpr int kSlotSupersAt = 4352;

__device__ __forceinline__ void init_barrier(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void expect_bytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void wait_phase(uint64_t* barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@done bra out;\n"
      "bra again;\n"
      "out:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
}
__device__ __forceinline__ void copy_bulk(std::byte* to, const void* from, uint32_t bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// Units of a full chunk.
template <typename Unit>
inline constexpr int kChunkUnits = 4;
template <>
inline constexpr int kChunkUnits<UnitHalf> = 2;

// What a warp does in one go: units [begin, end) of one tile.
struct DecodeItem {
  const DecodeTask* task = nullptr;
  int tile = 0;
  int begin = 0;
  int end = 0;
};

// A block's view of the program's tables.
struct DecodeWork {
  const DecodeStage* stages;  // in shared memory
  const DecodeTask* tasks;
  int num_stages;

  __device__ int first_group(const DecodeStage& stage) const {
    const int group = static_cast<int>(blockIdx.x) - stage.first_block;
    return group < 0 ? group + static_cast<int>(gridDim.x) : group;
  }
  // Gate and up of eight slices each take the warps twice.
  __device__ int num_rounds(const DecodeStage& stage) const {
    return stage.kind == DecodeStageKind::kGateUp && tasks[stage.first_task].slices_log2 == 3 ? 2
                                                                                              : 1;
  }
  // The first matrix of `group`.
  __device__ const DecodeTask* task_of(const DecodeStage& stage, int group) const {
    const DecodeTask* task = tasks + stage.first_task;
    if (stage.kind == DecodeStageKind::kGateUp) return task;
    for (int i = 1; i < stage.num_tasks && group >= task[1].first_group; ++i) ++task;
    return task;
  }
  // Items of one matrix in a group.
  __device__ static int items_log2(const DecodeStage& stage, const DecodeTask& task) {
    return stage.kind == DecodeStageKind::kGateUp ? max(2, static_cast<int>(task.slices_log2)) : 3;
  }
  // The part of `group` that falls to the calling warp in `round`; begin = end when none does.
  __device__ DecodeItem item(const DecodeStage& stage, int group, int round) const {
    const DecodeTask* task = task_of(stage, group);
    const int log2 = items_log2(stage, *task);
    int within = round * 8 + static_cast<int>(threadIdx.x / 32);
    task += within >> log2;
    within &= (1 << log2) - 1;
    DecodeItem item;
    item.task = task;
    item.tile =
        ((group - task->first_group) << (log2 - task->slices_log2)) + (within >> task->slices_log2);
    const int slice = within & ((1 << task->slices_log2) - 1);
    if (item.tile >= task->tiles) return item;
    item.begin = min(task->units, slice * task->slice_units);
    item.end = min(task->units, item.begin + task->slice_units);
    return item;
  }
};

class DecodeRing {
 public:
  // All lanes. `slots` and `barriers` are the warp's own; fills every slot.
  __device__ DecodeRing(const DecodeWork& work, std::byte* slots, uint64_t* barriers, int num_slots)
      : work_(work), slots_(slots), barriers_(barriers), num_slots_(num_slots) {
    group_ = work_.first_group(work_.stages[0]);
    seek();
    for (int i = 0; i < num_slots_; ++i) fill();
  }

  // The next chunk, once it is there: at most chunk_units(type) units.
  __device__ const std::byte* chunk() const {
    wait_phase(barriers_ + use_, phase_);
    return slots_ + use_ * kSlotBytes;
  }
  // All lanes have read the chunk. Its slot is filled again at once, except after an item's last
  // chunk as long as enough others are full: then at the next refill, when nobody waits for this
  // warp.
  __device__ void release(bool last) {
    __syncwarp();
    if (++use_ == num_slots_) {
      use_ = 0;
      phase_ ^= 1;
    }
    if (++num_empty_ * 2 > num_slots_ || !last) fill_one();
  }
  __device__ void refill() {
    while (num_empty_ > 0) fill_one();
  }

  __device__ static int chunk_units(DType type) {
    return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16
               ? kChunkUnits<UnitHalf>
               : kChunkUnits<UnitLegacy<DType::kQ8_0>>;
  }

 private:
  __device__ void fill_one() {
    --num_empty_;
    fill();
  }

  // Moves to the first item, from (stage_, group_, round_) on, that has units.
  __device__ void seek() {
    while (stage_ < work_.num_stages) {
      const DecodeStage& stage = work_.stages[stage_];
      if (stage.kind != DecodeStageKind::kAttention) {
        const int rounds = work_.num_rounds(stage);
        for (; group_ < stage.num_groups; group_ += static_cast<int>(gridDim.x), round_ = 0) {
          for (; round_ < rounds; ++round_) {
            if (begin(work_.item(stage, group_, round_))) return;
          }
        }
      }
      ++stage_;
      round_ = 0;
      if (stage_ < work_.num_stages) group_ = work_.first_group(work_.stages[stage_]);
    }
  }

  // Prepares for an item's chunks; false when it has none.
  __device__ bool begin(const DecodeItem& item) {
    if (item.begin >= item.end) return false;
    const DecodeTask& task = *item.task;
    const int64_t index = static_cast<int64_t>(item.tile) * task.units + item.begin;
    unit_ = item.begin;
    end_ = item.end;
    chunk_units_ = chunk_units(task.type);
    quant_bytes_ = task.quant_bytes;
    scale_bytes_ = task.scale_bytes;
    quants_ = task.quants + index * quant_bytes_;
    scales_ = reinterpret_cast<const std::byte*>(task.scales) + index * scale_bytes_;
    supers_ = task.supers == nullptr
                  ? nullptr
                  : task.supers + static_cast<int64_t>(item.tile) * (task.units / 4) * kTileRows;
    return true;
  }

  // Asks for the next chunk, into the slot that was used longest ago.
  __device__ void fill() {
    if (stage_ >= work_.num_stages) return;
    const int units = min(chunk_units_, end_ - unit_);
    const uint32_t quant_bytes = static_cast<uint32_t>(units) * quant_bytes_;
    const uint32_t scale_bytes = static_cast<uint32_t>(units) * scale_bytes_;
    if (threadIdx.x % 32 == 0) {
      std::byte* to = slots_ + fill_ * kSlotBytes;
      uint64_t* barrier = barriers_ + fill_;
      const int first_super = unit_ / 4;
      const uint32_t super_bytes =
          supers_ == nullptr ? 0 : ((unit_ + units - 1) / 4 - first_super + 1) * kSuperBytes;
      expect_bytes(barrier, quant_bytes + scale_bytes + super_bytes);
      copy_bulk(to, quants_, quant_bytes, barrier);
      if (scale_bytes > 0) copy_bulk(to + kSlotScalesAt, scales_, scale_bytes, barrier);
      if (super_bytes > 0) {
        copy_bulk(to + kSlotSupersAt, supers_ + first_super * kTileRows, super_bytes, barrier);
      }
    }
    if (++fill_ == num_slots_) fill_ = 0;
    quants_ += quant_bytes;
    scales_ += scale_bytes;
    unit_ += units;
    if (unit_ < end_) return;
    ++round_;
    seek();
  }

  static constexpr uint32_t kSuperBytes = kTileRows * sizeof(uint32_t);

  const DecodeWork& work_;
  std::byte* slots_;
  uint64_t* barriers_;
  int num_slots_;
  int fill_ = 0;
  int use_ = 0;
  int num_empty_ = 0;
  uint32_t phase_ = 0;
  // Of the next chunk to ask for.
  int stage_ = 0;
  int group_ = 0;
  int round_ = 0;
  int unit_ = 0;
  int end_ = 0;
  int chunk_units_ = 0;
  uint32_t quant_bytes_ = 0;
  uint32_t scale_bytes_ = 0;
  const std::byte* quants_ = nullptr;
  const std::byte* scales_ = nullptr;
  const uint32_t* supers_ = nullptr;
};

// Unit `i` of a chunk whose first unit is `begin` of its tile.
__device__ __forceinline__ uint4 shared_quad(const std::byte* p) {
  return *reinterpret_cast<const uint4*>(p);
}
__device__ __forceinline__ uint32_t shared_word(const std::byte* p) {
  return *reinterpret_cast<const uint32_t*>(p);
}

__device__ __forceinline__ void take_unit(UnitHalf& unit, const std::byte* slot, int, int i,
                                          int lane) {
#pragma unroll
  for (int j = 0; j < 4; ++j) unit.steps[j] = shared_quad(slot + i * 2048 + j * 512 + lane * 16);
}

template <DType kType>
__device__ __forceinline__ void take_unit(UnitLegacy<kType>& unit, const std::byte* slot, int,
                                          int i, int lane) {
  using Unit = UnitLegacy<kType>;
  const std::byte* chunk = slot + i * Unit::kBytes;
  unit.low = shared_quad(chunk + lane * 16);
  if constexpr (kType == DType::kQ8_0) unit.high = shared_quad(chunk + 512 + lane * 16);
  if constexpr (Unit::kFifthBit) unit.fifth = shared_word(chunk + 512 + lane * 4);
  constexpr int kWords = Unit::kMinimum ? 2 : 1;
  const std::byte* scales = slot + kSlotScalesAt + (i * kTileRows + lane / 4) * kWords * 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      unit.scale[r][w] = shared_word(scales + r * 8 * kWords * 4 + w * 4);
    }
  }
}

template <DType kType>
__device__ __forceinline__ void take_unit(UnitSuper<kType>& unit, const std::byte* slot, int begin,
                                          int i, int lane) {
  using Unit = UnitSuper<kType>;
  const std::byte* chunk = slot + i * Unit::kBytes;
  if constexpr (Unit::kNibbles) unit.nibbles = shared_quad(chunk + lane * 16);
  if constexpr (Unit::kTwoBits) {
    unit.twos = *reinterpret_cast<const uint2*>(chunk + Unit::kTwoBitsAt + lane * 8);
  }
  if constexpr (Unit::kOneBit) unit.ones = shared_word(chunk + Unit::kOneBitAt + lane * 4);
  const int super = (begin + i) / 4 - begin / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + r * 8;
    unit.scale[r] = shared_word(slot + kSlotScalesAt + (i * kTileRows + row) * 4);
    unit.super[r] = shared_word(slot + kSlotSupersAt + (super * kTileRows + row) * 4);
  }
}

}  // namespace sluice::kernels::cuda
