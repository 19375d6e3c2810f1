#pragma once

// What the products of Hopper cards share: rings of weights and operand rows in shared memory, the
// chain of wgmma steps, and the end of a product. A warp asks for the weights of its own 16 rows,
// so only operand rows need barriers between warps.

#include <type_traits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_stage.h"

namespace sluice::kernels::cuda {

// UnitHalf where it lies in shared memory: a step's operand is loaded when its registers are free.
// (Loaded a unit ahead, the compiler would have them written while wgmma still reads.)
struct StagedHalf {
  static constexpr int kBytes = UnitHalf::kBytes;
  static constexpr int kScaleWords = 0;
  static constexpr bool kSupers = false;

  const std::byte* at = nullptr;

  template <typename Words>
  __device__ void take(const std::byte* chunk, const uint32_t*, int lane) {
    at = chunk + lane * 16;
  }
  template <int j>
  __device__ void fragment(int, uint32_t (&a)[4]) const {
    const uint4 words = SharedWords::four(at + j * 512);
    a[0] = words.x;
    a[1] = words.y;
    a[2] = words.z;
    a[3] = words.w;
  }
};
template <typename Unit>
using Staged = std::conditional_t<std::is_same_v<Unit, UnitHalf>, StagedHalf, Unit>;

// With 128 tokens copies are asked for by a warp, which elects a lane, instead of by one thread:
// those products take 2 to 5 % less time by it, of 256 tokens 3 % more.
template <int kTokens>
inline constexpr bool kElects = kTokens == 128;

// Weights on their way to one warp: units [begin, end) of one tile, or none. All lanes have the
// same.
struct WeightRing {
  std::byte* memory = nullptr;
  uint64_t* full = nullptr;  // [stages], one arrival
  int stages = 0;
  bool active = false;
  int tile = 0, begin = 0, end = 0;
  int slot = 0;
  uint32_t parity = 0;
  // Of the lanes that ask: the unit that comes next, and where it is.
  int asked = 0;
  const std::byte* from = nullptr;

  // By one lane, or by all with kElected: asks for `count` units into slot `into`.
  template <bool kElected = false>
  __device__ __forceinline__ void request(const StageShape& shape, int count, int into) {
    std::byte* to = memory + into * shape.bytes();
    uint64_t* barrier = full + into;
    int bytes = count * shape.unit_bytes;
    if (shape.super_bytes == 0) {
      if (!kElected || elect_lane()) {
        arrive_expecting(barrier, bytes);
        copy_bulk(to, from, bytes, barrier);
      }
    } else {
      // Units of blocks, the first's begin on. The words of a block that does not end here follow
      // its own last unit.
      const int inside = static_cast<uint32_t>(asked) % kBlockUnits + count;
      bytes += inside / kBlockUnits * kSuperBytes;
      const int left = inside % kBlockUnits;
      if (!kElected || elect_lane()) {
        arrive_expecting(barrier, bytes + (left > 0 ? kSuperBytes : 0));
        copy_bulk(to, from, bytes, barrier);
        if (left > 0) {
          copy_bulk(to + shape.tail_at(), from + bytes + (kBlockUnits - left) * shape.unit_bytes,
                    kSuperBytes, barrier);
        }
      }
    }
    asked += count;
    from += bytes;
  }
  // The next stage, if there is one.
  template <typename Unit, bool kElected = false>
  __device__ __forceinline__ void request_next(int into) {
    constexpr StageShape kShape = shape_of<Unit>();
    if (asked + kShape.units <= end) {
      request<kElected>(kShape, kShape.units, into);
    } else if (asked < end) {
      request<kElected>(kShape, end - asked, into);
    }
  }

  // Lane 0 prepares the barriers.
  __device__ void init(int lane) const {
    if (lane == 0) {
      for (int i = 0; i < stages; ++i) init_barrier(full + i, 1);
      fence_barriers();
    }
    __syncwarp();
  }
  // Units [first, last) from here on: lane 0 fills the ring. All that was asked for before is used.
  __device__ void start(const PackedView& w, int first, int last, int lane) {
    begin = first;
    end = last;
    if (lane == 0 && active) {
      const StageShape shape = StageOf(w.type);
      const int64_t index = static_cast<int64_t>(tile) * w.units + first;
      from = w.unit_data + UnitAt(index, shape.unit_bytes, shape.super_bytes);
      asked = first;
      for (int i = 0, into = slot; i < stages && asked < end; ++i) {
        request(shape, min(shape.units, end - asked), into);
        into = into + 1 == stages ? 0 : into + 1;
      }
    }
    __syncwarp();
  }

  // Waits for the stage that is next.
  __device__ __forceinline__ void wait() const {
    if (active) wait_for_phase(full + slot, parity);
  }
  // The warp's part of unit first + inside; `first` is the first one of the stage that is next.
  template <typename Unit>
  __device__ __forceinline__ void take_of_stage(uint32_t first, uint32_t inside, int lane,
                                                Unit& unit) const {
    constexpr StageShape kShape = shape_of<Unit>();
    const std::byte* stage = memory + slot * kShape.bytes();
    if constexpr (!Unit::kSupers) {
      unit.template take<SharedWords>(stage + inside * kShape.unit_bytes, nullptr, lane);
    } else {
      static_assert(kShape.units == kBlockUnits);
      // Units from the stage's first to the end of the unit's block: the words follow them, if all
      // are in the stage.
      const uint32_t ahead = first % kBlockUnits;
      const bool second = ahead + inside >= kBlockUnits;
      const bool ends = !second && first - ahead + kBlockUnits <= static_cast<uint32_t>(end);
      const uint32_t supers = ends ? (kBlockUnits - ahead) * kShape.unit_bytes : kShape.tail_at();
      unit.template take<SharedWords>(
          stage + inside * kShape.unit_bytes + (second ? kSuperBytes : 0),
          reinterpret_cast<const uint32_t*>(stage + supers), lane);
    }
  }
  // The warp's part of unit u; units come ascending.
  template <typename Unit>
  __device__ __forceinline__ void take(int u, int lane, Unit& unit) const {
    // Unsigned: the remainder of a signed number is four instructions.
    const uint32_t inside = static_cast<uint32_t>(u - begin) % shape_of<Unit>().units;
    if (inside == 0) wait();
    take_of_stage(static_cast<uint32_t>(u) - inside, inside, lane, unit);
  }
  // When products have used what slot `used` brought, which proves it to be in registers: asks for
  // more in its room.
  template <typename Unit>
  __device__ __forceinline__ void refill(int used, int lane) {
    __syncwarp();
    if (lane == 0 && active) request_next<Unit>(used);
  }
  // On to the stage after.
  __device__ __forceinline__ void move_if(bool wanted) {
    slot += wanted ? 1 : 0;
    parity ^= slot == stages ? 1 : 0;
    slot = slot == stages ? 0 : slot;
  }
  // Whether the stage that is next is there, or was.
  __device__ __forceinline__ bool ready() const {
    return phase_ended(full + slot, active ? parity : 1);
  }

  template <typename Unit>
  __device__ static constexpr StageShape shape_of() {
    return {Unit::kBytes == 2048   ? 1
            : Unit::kBytes == 1024 ? 2
                                   : 4,
            kUnitBytes<Unit>, Unit::kSupers ? kSuperBytes : 0};
  }
};

// Operand rows on their way to the warps of one slice.
struct OperandRing {
  std::byte* memory = nullptr;
  uint64_t* full = nullptr;   // [stages], one arrival and the bytes
  uint64_t* empty = nullptr;  // [stages], an arrival of every warp that reads it
  int stages = 0;
  int slot = 0;
  uint32_t parity = 0;
  int released = 0;    // next slot to give back
  int first_rank = 0;  // of the pair of blocks that fill and free the stages (kPaired)

  // `count` divides the number of stages.
  __device__ void next(int count) {
    slot += count;
    if (slot == stages) {
      slot = 0;
      parity ^= 1;
    }
  }
  template <bool kPaired>
  __device__ __forceinline__ void release_if(bool wanted, int lane) {
    if constexpr (kPaired) {
      arrive_at_if(wanted && lane < 2, empty + released, first_rank + (lane & 1));
    } else {
      arrive_if(wanted && lane == 0, empty + released);
    }
    released += wanted ? 1 : 0;
    released = released == stages ? 0 : released;
  }
};

// acc += the warpgroup's 64 rows times kTokens tokens over units [begin, end). Two steps are in the
// tensor cores' hands at a time. With kAhead the weights of the two steps that follow are made
// meanwhile, those of the next unit included; else a step's own, in fewer registers. Stages of
// operand rows have kStageSteps steps; kPaired: two blocks of a cluster fill and free them.
//
// ptxas lets steps overlap as long as nothing branches between the first and the last of a unit and
// what they read is kept from being overwritten up to the wait for them.
template <typename Unit, int kTokens, bool kAhead, int kStageSteps, bool kPaired, typename Ring>
__device__ __forceinline__ void multiply_units(Ring& weights, OperandRing& x, int begin, int end,
                                               int lane, float (&acc)[kTokens / 2]) {
  static_assert(kStageSteps % 4 == 0 || kStageSteps == 2);
  constexpr int kStepBytes = kTokens * 32;
  constexpr uint32_t kUnits = WeightRing::shape_of<Unit>().units;
  constexpr int kStagesOfUnit = kStageSteps < 4 ? 4 / kStageSteps : 1;
  if (begin >= end) return;
  uint32_t a[4][4];
  const uint32_t base = operand_descriptor_low(x.memory, 128);
  Staged<Unit> unit;
  if constexpr (kAhead) {
    weights.take(begin, lane, unit);
    unit.template fragment<0>(lane, a[0]);
    unit.template fragment<1>(lane, a[1]);
  }
  bool ended = false;  // the unit was its stage's last
  for (int u = begin; u < end; ++u) {
    // The unit's first step in its stage of operand rows, and the next unit in its own.
    const uint32_t first = static_cast<uint32_t>(u - begin) * 4 % kStageSteps;
    const uint32_t next = static_cast<uint32_t>(u + 1 - weights.begin) % kUnits;
    const int used = weights.slot;
    ended = next == 0 || u + 1 == weights.end;
    if constexpr (kAhead) weights.move_if(ended && u + 1 < end);
    for (bool ready = false; !ready;) {
      ready = weights.ready();
#pragma unroll
      for (int i = 0; i < kStagesOfUnit; ++i) ready &= phase_ended(x.full + x.slot + i, x.parity);
    }
    if constexpr (!kAhead) weights.take(u, lane, unit);
    const uint32_t operands =
        base + (static_cast<uint32_t>(x.slot) * kStageSteps + first) * (kStepBytes >> 4);
    const auto step = [&]<int j>() {
      wgmma_wait<1>();
      // Steps before the last are done; with the one that ended a stage, its room is free.
      if constexpr (j % (kStageSteps < 4 ? kStageSteps : 4) == 1) {
        const bool frees = (kStageSteps <= 4 || first == 0) && (j >= kStageSteps || u > begin);
        x.release_if<kPaired>(frees, lane);
      }
      [[maybe_unused]] constexpr int kMade = (j + 2) % 4;  // with kAhead
      if constexpr (kAhead) {
        keep_until_here(a[kMade]);
      } else {
        unit.template fragment<j>(lane, a[j]);
      }
      wgmma_fence(a[j]);
      wgmma_step<kTokens>(acc, a[j], operand_descriptor(operands + j * (kStepBytes >> 4), 256));
      wgmma_commit();
      if constexpr (kAhead) {
        if constexpr (j == 2) {
          weights.take_of_stage(static_cast<uint32_t>(u + 1) - next, next, lane, unit);
        }
        unit.template fragment<kMade>(lane, a[kMade]);
      }
    };
    step.template operator()<0>();
    step.template operator()<1>();
    step.template operator()<2>();
    step.template operator()<3>();
    if (ended) weights.template refill<Unit>(used, lane);
    if constexpr (!kAhead) weights.move_if(ended);
    if (kStageSteps <= 4 || first + 4 == kStageSteps) x.next(kStagesOfUnit);
  }
  if constexpr (kAhead) weights.move_if(ended);
  wgmma_wait<0>();
  keep_until_here(a[2]);
  keep_until_here(a[3]);
  keep_in_registers(acc);
}

// The end of a product up to the bias: sum, the token's factor, the row's factor, the bias.
__device__ __forceinline__ float finished(const LinearTask& task, int n, float factor, float sum) {
  sum = __fmul_rn(sum, factor);
  if (task.weight.row_factors != nullptr) sum = __fmul_rn(sum, __ldg(task.weight.row_factors + n));
  if (task.bias != nullptr) sum = __fadd_rn(sum, __ldg(task.bias + n));
  return sum;
}

template <GateActivation kActivation>
__device__ __forceinline__ float gated(float gate, float up) {
  const float value =
      kActivation == GateActivation::kGeluTanh ? gelu_tanh_f32(gate) : silu_f32(gate);
  return __fmul_rn(value, up);
}
__device__ __forceinline__ float gated(GateActivation activation, float gate, float up) {
  return activation == GateActivation::kGeluTanh ? gated<GateActivation::kGeluTanh>(gate, up)
                                                 : gated<GateActivation::kSilu>(gate, up);
}

}  // namespace sluice::kernels::cuda
