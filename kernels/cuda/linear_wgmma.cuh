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

  // By one lane: asks for the stage that begins at `first`, if there is one.
  __device__ void request(const PackedView& w, const StageShape& shape, int first, int into) const {
    const int count = min(shape.units, end - first);
    if (count <= 0) return;
    std::byte* to = memory + into * shape.bytes();
    uint64_t* barrier = full + into;
    const int64_t index = static_cast<int64_t>(tile) * w.units + first;
    const std::byte* from = w.unit_data + UnitAt(index, shape.unit_bytes, shape.super_bytes);
    int bytes = count * shape.unit_bytes;
    if (shape.super_bytes == 0) {
      arrive_expecting(barrier, bytes);
      copy_bulk(to, from, bytes, barrier);
      return;
    }
    const int inside = first % kBlockUnits + count;  // units of blocks from the first's begin on
    bytes += inside / kBlockUnits * kSuperBytes;
    const bool tail = inside % kBlockUnits != 0;
    arrive_expecting(barrier, bytes + (tail ? kSuperBytes : 0));
    copy_bulk(to, from, bytes, barrier);
    if (tail) {
      const std::byte* supers = w.unit_data + SupersAt(index + count - 1, shape.unit_bytes);
      copy_bulk(to + shape.tail_at(), supers, kSuperBytes, barrier);
    }
  }

  // Lane 0 prepares the barriers and fills the ring.
  __device__ void start(const PackedView& w, int lane) {
    if (lane == 0 && active) {
      for (int i = 0; i < stages; ++i) init_barrier(full + i, 1);
      fence_barriers();
      const StageShape shape = StageOf(w.type);
      for (int i = 0; i < stages; ++i) request(w, shape, begin + i * shape.units, i);
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
  // When products have used what the stage brought, which proves it to be in registers: asks for
  // more in its room. `after`: the first unit after it.
  template <typename Unit>
  __device__ __forceinline__ void next(const PackedView& w, int after, int lane) {
    constexpr StageShape kShape = shape_of<Unit>();
    __syncwarp();
    if (lane == 0 && active) request(w, kShape, after + (stages - 1) * kShape.units, slot);
    if (++slot == stages) {
      slot = 0;
      parity ^= 1;
    }
  }
  // next(), when unit u was its stage's last.
  template <typename Unit>
  __device__ __forceinline__ void refill(const PackedView& w, int u, int lane) {
    constexpr StageShape kShape = shape_of<Unit>();
    if (static_cast<uint32_t>(u - begin) % kShape.units + 1 == kShape.units) {
      next<Unit>(w, u + 1, lane);
    }
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
  int released = 0;  // next slot to give back

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
      arrive_at_if(wanted && lane < 2, empty + released, lane & 1);
    } else {
      arrive_if(wanted && lane == 0, empty + released);
    }
    released += wanted ? 1 : 0;
    released = released == stages ? 0 : released;
  }
};

template <int kSize>
__device__ __forceinline__ void keep_in_registers(float (&acc)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(acc[i])::"memory");
}

// acc += the warpgroup's 64 rows times kTokens tokens over units [weights.begin, weights.end):
// kDepth steps are in the tensor cores' hands at a time while the next one's weights are made.
// Stages of operand rows have kStageSteps steps; kPaired: both blocks of a cluster fill and free
// them.
template <typename Unit, int kTokens, int kDepth, int kStageSteps, bool kPaired>
__device__ __forceinline__ void multiply_units(const PackedView& w, WeightRing& weights,
                                               OperandRing& x, int begin, int end, int lane,
                                               float (&acc)[kTokens / 2]) {
  static_assert(kStageSteps % 4 == 0 || 4 % kStageSteps == 0);
  static_assert(kDepth <= kStageSteps && kDepth <= 4);
  constexpr int kStepBytes = kTokens * 32;
  // Registers for every step of a unit, and nothing to wait for in between but wgmma itself: else
  // the compiler gives up and runs step after step.
  uint32_t a[4][4];
  const uint32_t base = operand_descriptor_low(x.memory, 128);
  for (int u = begin; u < end; ++u) {
    // The unit's first step in its stage.
    const uint32_t first = static_cast<uint32_t>(u - begin) * 4 % kStageSteps;
    Staged<Unit> unit;
    weights.take(u, lane, unit);
    if (first == 0) {
#pragma unroll
      for (int i = 0; i < 4; i += kStageSteps) {
        wait_for_phase(x.full + x.slot + i / kStageSteps, x.parity);
      }
    }
    const uint32_t operands =
        base + (static_cast<uint32_t>(x.slot) * kStageSteps + first) * (kStepBytes >> 4);
    const auto step = [&]<int j>() {
      wgmma_wait<kDepth - 1>();
      // Steps before the last kDepth are done; with the one that ended a stage, its room is free.
      if constexpr (j % (kStageSteps < 4 ? kStageSteps : 4) == kDepth - 1) {
        const bool frees = (kStageSteps <= 4 || first == 0) && (j >= kStageSteps || u > begin);
        x.release_if<kPaired>(frees, lane);
      }
      unit.template fragment<j>(lane, a[j]);
      wgmma_fence(a[j]);
      wgmma_step<kTokens>(acc, a[j], operand_descriptor(operands + j * (kStepBytes >> 4), 256));
      wgmma_commit();
    };
    step.template operator()<0>();
    step.template operator()<1>();
    step.template operator()<2>();
    step.template operator()<3>();
    weights.refill<Unit>(w, u, lane);
    if (kStageSteps <= 4 || first + 4 == kStageSteps) x.next(kStageSteps < 4 ? 4 / kStageSteps : 1);
  }
  wgmma_wait<0>();
  keep_in_registers(acc);
}

// The end of a product up to the bias: sum, the token's factor, the row's factor, the bias.
__device__ __forceinline__ float finished(const LinearTask& task, int n, float factor, float sum) {
  sum = __fmul_rn(sum, factor);
  if (task.weight.row_factors != nullptr) sum = __fmul_rn(sum, __ldg(task.weight.row_factors + n));
  if (task.bias != nullptr) sum = __fadd_rn(sum, __ldg(task.bias + n));
  return sum;
}

__device__ __forceinline__ float gated(GateActivation activation, float gate, float up) {
  const float value =
      activation == GateActivation::kGeluTanh ? gelu_tanh_f32(gate) : silu_f32(gate);
  return __fmul_rn(value, up);
}

}  // namespace sluice::kernels::cuda
