#pragma once

// The weights that one warp of the persistent decode kernel multiplies by, in the order in which it
// needs them, through a ring of its own in shared memory: as soon as a chunk has been used its slot
// is filled with the chunk `num_slots` ahead, whatever stage that belongs to. Warps beside those
// that multiply ask for the copies (PTX ISA, cp.async.bulk), for to ask for one takes some 0.4 us;
// mbarriers of a slot tell when it is full and when it is free. In one form of the kernel each ring
// has a warp that fills it and makes quants operands in their slot as soon as they are there, so
// that the one that multiplies finds them made, and has the first in registers before there is a
// row to multiply by. In the other form quants become operands in registers, as they are
// multiplied, four warps fill all rings, and the copies are read from a list.

#include <type_traits>

#include "kernels/cuda/decode_program.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/shared_tiles.cuh"

namespace sluice::kernels::cuda {

// A slot: operands of two units of a tile as UnitHalf has them, 2048 bytes each. Quants come to its
// end: the units as stored up to kSlotSupersAt, behind them the super words of a block that does
// not end in the chunk. Where quants stay what they are: both without gaps.
inline constexpr int kSlotSupersAt = kPreparedSlotBytes - kSuperBytes;
static_assert(kPreparedUnits * UnitHalf::kBytes == kPreparedSlotBytes);

struct RingSlots {
  std::byte* slots;
  uint64_t* full;  // of each slot: it can be multiplied by
  uint64_t* free;
  // Where operands are made in the slot: what a copy brought is there, and what it is (quants_of).
  uint64_t* arrived;
  uint8_t* contents;
  int num_slots;
  int slot_bytes;
};

// `arrivals` end a phase.
__device__ __forceinline__ void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void expect_bytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
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

__device__ __forceinline__ bool phase_ended(uint64_t* barrier, uint32_t phase) {
  uint32_t ended;
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "mbarrier.test_wait.parity.shared.b64 ended, [%1], %2;\n"
      "selp.u32 %0, 1, 0, ended;\n"
      "}"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(phase)
      : "memory");
  return ended != 0;
}

// A chunk of quants in eight bits: how many units, which unit of a block of 256 the first is, type.
__device__ __forceinline__ uint8_t quants_of(int units, int first_unit, DType type) {
  return static_cast<uint8_t>((units - 1) | first_unit % kBlockUnits << 1 |
                              static_cast<int>(type) << 3);
}
__device__ __forceinline__ bool are_operands(DType type) { return type <= DType::kBF16; }

// Makes a slot's quants operands. All of them are in registers before the first is overwritten.
template <typename Unit, int kUnits>
__device__ __forceinline__ void make_operands_of(std::byte* slot, int ahead) {
  const int lane = threadIdx.x % 32;
  // Where the first one's block ends there are its super words, if they all came.
  const int ends = Unit::kSupers ? (ahead + kUnits) / kBlockUnits : 0;
  constexpr int kMost = kUnits * kUnitBytes<Unit> + (Unit::kSupers ? kSuperBytes : 0);
  static_assert(kMost <= kSlotSupersAt);
  const std::byte* stored = slot + kSlotSupersAt - kUnits * kUnitBytes<Unit> - ends * kSuperBytes;
  Unit units[kUnits];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const std::byte* at = stored + i * kUnitBytes<Unit>;
    const std::byte* supers = slot + kSlotSupersAt;
    if constexpr (Unit::kSupers) {
      const bool second = ahead + i >= kBlockUnits;
      if (second) at += kSuperBytes;
      if (ends > 0 && !second) supers = stored + (kBlockUnits - ahead) * kUnitBytes<Unit>;
    }
    units[i].template take<SharedWords>(at, reinterpret_cast<const uint32_t*>(supers), lane);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    uint4* to = reinterpret_cast<uint4*>(slot + i * UnitHalf::kBytes) + lane;
    uint32_t a[4][4];
    units[i].template fragment<0>(lane, a[0]);
    units[i].template fragment<1>(lane, a[1]);
    units[i].template fragment<2>(lane, a[2]);
    units[i].template fragment<3>(lane, a[3]);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[j * 32] = make_uint4(a[j][0], a[j][1], a[j][2], a[j][3]);
  }
  // The next copy into the slot comes after these writes.
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Nothing for what is stored as operands.
__device__ __forceinline__ void make_operands(std::byte* slot, int contents) {
  const int ahead = contents >> 1 & 3;
  with_unit(static_cast<DType>(contents >> 3), [&]<typename Unit>() {
    if constexpr (!std::is_same_v<Unit, UnitHalf>) {
      if (contents & 1) {
        make_operands_of<Unit, 2>(slot, ahead);
      } else {
        make_operands_of<Unit, 1>(slot, ahead);
      }
    }
  });
}

// What a warp does in one go: units [begin, end) of one tile.
struct DecodeItem {
  const DecodeTask* task = nullptr;
  const DecodeShape* shape = nullptr;
  int tile = 0;
  int begin = 0;
  int end = 0;
};

// A block's first item of a stage of attention or merging.
__device__ __forceinline__ int first_item(const DecodeStage& stage) {
  const int item = static_cast<int>(blockIdx.x) - stage.first_team;
  return item < 0 ? item + static_cast<int>(gridDim.x) : item;
}

// A block's view of the program's tables.
struct DecodeWork {
  const DecodeStage* stages;  // in shared memory
  const DecodeTask* tasks;
  const DecodeShape* shapes;
  int num_stages;

  __device__ const DecodeShape& shape(const DecodeTask& task) const { return shapes[task.shape]; }

  // The first matrix of `group`.
  __device__ const DecodeTask* task_of(const DecodeStage& stage, int group) const {
    const DecodeTask* task = tasks + stage.first_task;
    if (stage.kind == DecodeStageKind::kGateUp) return task;
    for (int i = 1; i < stage.num_tasks && group >= shape(task[1]).first_group; ++i) ++task;
    return task;
  }
};
// The same as a team of a form's blocks sees it.
template <DecodeForm kForm>
struct TeamWork : DecodeWork {
  static constexpr int kWarps = 1 << kForm.team_log2;

  __device__ static int stride() { return kForm.teams * static_cast<int>(gridDim.x); }
  __device__ int first_group(const DecodeStage& stage, int team) const {
    const int group =
        team * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x) - stage.first_team;
    return group < 0 ? group + stride() : group;
  }
  // The first of any of the block's teams.
  __device__ int least_group(const DecodeStage& stage) const {
    int least = first_group(stage, 0);
#pragma unroll
    for (int team = 1; team < kForm.teams; ++team) least = min(least, first_group(stage, team));
    return least;
  }
  // Items of one matrix in a group.
  __device__ static int items_log2(const DecodeStage& stage, const DecodeShape& shape) {
    const int least = kForm.team_log2 - (stage.kind == DecodeStageKind::kGateUp ? 1 : 0);
    return max(least, static_cast<int>(shape.slices_log2));
  }
  // How often the items of `group` take the team's warps.
  __device__ int num_rounds(const DecodeStage& stage, int group) const {
    const bool pair = stage.kind == DecodeStageKind::kGateUp;
    if (kWarps == kMaxSlices) {  // only gate and up of eight slices each come twice
      return pair && shape(tasks[stage.first_task]).slices_log2 == kForm.team_log2 ? 2 : 1;
    }
    return (pair ? 2 : 1) << items_log2(stage, shape(*task_of(stage, group))) >> kForm.team_log2;
  }
  // The part of `group` that falls to a team's `warp` in `round`; begin = end when none does.
  __device__ DecodeItem item(const DecodeStage& stage, int group, int round, int warp) const {
    const DecodeTask* task = task_of(stage, group);
    const int log2 = items_log2(stage, shape(*task));
    int within = round * kWarps + warp;
    task += within >> log2;
    within &= (1 << log2) - 1;
    const DecodeShape& shape = this->shape(*task);
    DecodeItem item;
    item.task = task;
    item.shape = &shape;
    item.tile =
        ((group - shape.first_group) << (log2 - shape.slices_log2)) + (within >> shape.slices_log2);
    const int slice = within & ((1 << shape.slices_log2) - 1);
    if (item.tile >= shape.tiles) return item;
    item.begin = min(shape.units, slice * shape.slice_units);
    item.end = min(shape.units, item.begin + shape.slice_units);
    return item;
  }
};

// By one thread: asks for a chunk. `full` tells when it is there.
__device__ __forceinline__ void request_copy(const ChunkCopy& copy, std::byte* to,
                                             std::byte* supers, uint64_t* full) {
  expect_bytes(full, copy.bytes + (copy.supers_at != 0 ? kSuperBytes : 0));
  copy_bulk(to, copy.from, copy.bytes, full);
  if (copy.supers_at != 0) copy_bulk(supers, copy.from + copy.supers_at, kSuperBytes, full);
}

// The chunks that one warp needs, in the order in which it needs them.
template <DecodeForm kForm>
class ChunkCursor {
 public:
  __device__ ChunkCursor(const TeamWork<kForm>& work, int warp)
      : work_(work),
        team_(kForm.teams == 1 ? 0 : warp >> kForm.team_log2),
        warp_(warp % TeamWork<kForm>::kWarps) {
    group_ = work_.first_group(work_.stages[0], team_);
    seek();
  }

  __device__ bool done() const { return stage_ >= work_.num_stages; }
  // The copy of the next chunk.
  __device__ __forceinline__ ChunkCopy copy() const {
    const int units = chunk_end() - unit_;
    ChunkCopy copy = {data_, static_cast<uint32_t>(units) * unit_bytes_, 0};
    if (super_bytes_ != 0) {
      const int inside = unit_ % kBlockUnits + units;
      copy.bytes += inside / kBlockUnits * super_bytes_;
      const int past = inside % kBlockUnits;  // units of a block that goes on
      if (past != 0) copy.supers_at = copy.bytes + (kBlockUnits - past) * unit_bytes_;
    }
    return copy;
  }
  // Asks for it, where operands are made in the slot; one thread. `there` tells when it has come.
  __device__ __forceinline__ void request(const RingSlots& ring, int slot, uint64_t* there) const {
    const ChunkCopy next = copy();
    std::byte* at = ring.slots + slot * kPreparedSlotBytes;
    std::byte* supers = at + kSlotSupersAt;
    ring.contents[slot] = quants_of(chunk_end() - unit_, unit_, type_);
    request_copy(next, are_operands(type_) ? at : supers - next.bytes, supers, there);
  }
  // To the chunk after.
  __device__ __forceinline__ void advance() {
    const int next = chunk_end();
    data_ += static_cast<uint32_t>(next - unit_) * unit_bytes_;
    data_ += (next / kBlockUnits - unit_ / kBlockUnits) * super_bytes_;
    unit_ = next;
    if (unit_ < end_) return;
    ++round_;
    seek();
  }

 private:
  // Moves to the first item, from (stage_, group_, round_) on, that has units.
  __device__ void seek() {
    while (stage_ < work_.num_stages) {
      const DecodeStage& stage = work_.stages[stage_];
      // Attention and merging have no groups.
      for (; group_ < stage.num_groups; group_ += work_.stride(), round_ = 0) {
        const int rounds = work_.num_rounds(stage, group_);
        for (; round_ < rounds; ++round_) {
          if (begin(work_.item(stage, group_, round_, warp_))) return;
        }
      }
      ++stage_;
      round_ = 0;
      if (stage_ < work_.num_stages) group_ = work_.first_group(work_.stages[stage_], team_);
    }
  }

  // Prepares for an item's chunks; false when it has none.
  __device__ bool begin(const DecodeItem& item) {
    if (item.begin >= item.end) return false;
    const DecodeShape& shape = *item.shape;
    const int64_t index = static_cast<int64_t>(item.tile) * shape.units + item.begin;
    unit_ = item.begin;
    end_ = item.end;
    type_ = shape.type;
    unit_bytes_ = shape.unit_bytes;
    super_bytes_ = shape.super_bytes;
    if constexpr (!kForm.prepares) chunk_units_ = shape.chunk_units;
    data_ = item.task->units + UnitAt(index, shape.unit_bytes, shape.super_bytes);
    return true;
  }

  __device__ __forceinline__ int chunk_end() const {
    if constexpr (kForm.prepares) return min(unit_ + kPreparedUnits, end_);
    return ChunkEnd(unit_, end_, chunk_units_, super_bytes_ != 0);
  }

  const TeamWork<kForm> work_;
  int team_;
  int warp_;  // of the team
  int stage_ = 0;
  int group_ = 0;
  int round_ = 0;
  int unit_ = 0;
  int end_ = 0;
  DType type_ = DType::kF32;
  int chunk_units_ = kPreparedUnits;
  uint32_t unit_bytes_ = 0;
  uint32_t super_bytes_ = 0;
  const std::byte* data_ = nullptr;  // of unit_
};

// The calling warp's ring. All lanes. What it keeps are offsets into the block's shared memory, few
// and opaque: what the compiler would work out anew it takes from local memory.
template <DecodeForm kForm>
class DecodeRing {
 public:
  __device__ DecodeRing(const RingSlots& slots, std::byte* memory)
      : memory_(memory),
        slot_bytes_(slots.slot_bytes),
        num_slots_(slots.num_slots),
        slot_(static_cast<uint32_t>(slots.slots - memory)),
        full_(static_cast<uint32_t>(reinterpret_cast<std::byte*>(slots.full) - memory)),
        left_(static_cast<uint32_t>(slots.num_slots)) {
    asm volatile("" : "+r"(slot_), "+r"(full_));
  }

  // The next chunk, once it can be multiplied by: what a copy brought, or operands.
  __device__ __forceinline__ const std::byte* chunk() const {
    wait_phase(reinterpret_cast<uint64_t*>(memory_ + full_), phase_);
    return memory_ + slot_;
  }
  // The same when it is there already, null otherwise. All lanes of a warp, which go the same way,
  // whichever of them sees the phase end first.
  __device__ __forceinline__ const std::byte* chunk_if_there() const {
    auto* full = reinterpret_cast<uint64_t*>(memory_ + full_);
    return __all_sync(~0u, phase_ended(full, phase_)) ? memory_ + slot_ : nullptr;
  }
  // The lane has read its part of the chunk.
  __device__ __forceinline__ void release() {
    constexpr uint32_t kFree = kForm.warps() * kMaxRingSlots * 8;  // from its full barrier on
    arrive(reinterpret_cast<uint64_t*>(memory_ + full_ + kFree));
    slot_ += slot_bytes_;
    full_ += 8;
    if (--left_ > 0) return;
    left_ = num_slots_;
    slot_ -= num_slots_ * slot_bytes_;
    full_ -= num_slots_ * 8;
    phase_ ^= 1;
  }

 private:
  std::byte* memory_;
  uint32_t slot_bytes_;
  uint32_t num_slots_;
  uint32_t slot_;  // the slot that is next
  uint32_t full_;  // its barrier
  uint32_t left_;  // slots until the first comes again
  uint32_t phase_ = 0;
};

// What ChunkCursor is, from a list of copies, two of which are read ahead.
class ChunkList {
 public:
  __device__ explicit ChunkList(const ChunkCopy* copies)
      : copies_(copies + 2), next_(load_stream(copies)), after_(load_stream(copies + 1)) {}

  __device__ bool done() const { return next_.z == 0; }
  __device__ __forceinline__ void request(const RingSlots& ring, int slot) const {
    ChunkCopy copy;
    memcpy(&copy, &next_, sizeof(copy));
    std::byte* at = ring.slots + slot * ring.slot_bytes;
    request_copy(copy, at, at + copy.bytes, ring.full + slot);
  }
  __device__ __forceinline__ void advance() {
    next_ = after_;
    after_ = load_stream(copies_++);
  }

 private:
  const ChunkCopy* copies_;
  uint4 next_;
  uint4 after_;
};

// Fills one ring with the chunks that its warp needs. Each of the first kThreads lanes of a warp
// does so for a ring. They take turns to test and to ask, which costs 0.7 % of a token:
// where lanes of a warp test barriers of their own, or ask for copies, in one instruction,
// racecheck of compute-sanitizer reports the copies as races with what was read before. What they
// wait for longer, the list, they read together.
template <int kThreads>
__device__ __forceinline__ void keep_full(ChunkList& chunks, const RingSlots& ring) {
  constexpr uint32_t kLanes = (1u << kThreads) - 1;
  const int lane = threadIdx.x % 32;
  int slot = 0;  // that was used longest ago
  uint32_t phase = 1;
  while (__any_sync(kLanes, !chunks.done())) {
    bool asked = false;
#pragma unroll 1
    for (int turn = 0; turn < kThreads; ++turn) {
      if (lane == turn && !chunks.done() && phase_ended(ring.free + slot, phase)) {
        chunks.request(ring, slot);
        asked = true;
      }
      __syncwarp(kLanes);
    }
    if (asked) {
      chunks.advance();
      if (++slot == ring.num_slots) {
        slot = 0;
        phase ^= 1;
      }
    }
    // The warps of the same scheduler need its slots more.
    if (!__any_sync(kLanes, asked)) __nanosleep(100);
  }
}

// Fills one ring and, if the program has any, makes operands of the quants in it as they arrive. A
// warp.
template <DecodeForm kForm>
__device__ __forceinline__ void serve_ring(const TeamWork<kForm>& work, int warp,
                                           const RingSlots& ring, bool has_quants) {
  ChunkCursor<kForm> chunks(work, warp);
  int empty = 0;  // the slot that is filled next, and when it is free
  uint32_t free_phase = 1;
  int arriving = 0;  // the slot whose chunk is due next
  uint32_t arrived_phase = 0;
  int under_way = 0;  // chunks that were asked for and have not been passed on
  while (!chunks.done() || under_way > 0) {
    bool idle = true;
    // All lanes go the same way, whichever of them sees a phase end first.
    if (!chunks.done() && __all_sync(~0u, phase_ended(ring.free + empty, free_phase))) {
      uint64_t* there = (has_quants ? ring.arrived : ring.full) + empty;
      if (elect_lane()) chunks.request(ring, empty, there);
      chunks.advance();
      if (has_quants) ++under_way;
      if (++empty == ring.num_slots) {
        empty = 0;
        free_phase ^= 1;
      }
      idle = false;
    }
    if (under_way > 0 && __all_sync(~0u, phase_ended(ring.arrived + arriving, arrived_phase))) {
      make_operands(ring.slots + arriving * kPreparedSlotBytes, ring.contents[arriving]);
      arrive(ring.full + arriving);
      --under_way;
      if (++arriving == ring.num_slots) {
        arriving = 0;
        arrived_phase ^= 1;
      }
      idle = false;
    }
    if (idle) __nanosleep(50);
  }
}

}  // namespace sluice::kernels::cuda
