#pragma once

// What one warp of the persistent decode kernel does of a stage's products: the sums of its items,
// each a slice of a tile's rows by the row that the block made. From operands that the ring holds
// ready, or from quants as they are stored.

#include "kernels/cuda/decode_ring.cuh"
#include "kernels/cuda/decode_shared.cuh"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/mma.cuh"

namespace sluice::kernels::cuda {

// A chunk's operands in registers, taken ahead of the row that they are multiplied by.
struct HeldChunk {
  UnitHalf units[kPreparedUnits];
  bool there = false;
};
// The chunk is free again once it is in registers.
template <DecodeForm kForm>
__device__ __forceinline__ void hold(DecodeRing<kForm>& ring, const std::byte* chunk,
                                     HeldChunk& held) {
#pragma unroll
  for (int i = 0; i < kPreparedUnits; ++i) {
    held.units[i].take<SharedWords>(chunk + i * UnitHalf::kBytes, nullptr, threadIdx.x % 32);
  }
  ring.release();
  held.there = true;
}
// The next chunk, when it is there by now.
template <DecodeForm kForm>
__device__ __forceinline__ void hold_next(DecodeRing<kForm>& ring, HeldChunk& held) {
  if (held.there) return;
  const std::byte* chunk = ring.chunk_if_there();
  if (chunk != nullptr) hold(ring, chunk, held);
}

// A lane's part of the row for a chunk's units.
struct RowWords {
  uint4 low[kPreparedUnits];
  uint4 high[kPreparedUnits];

  __device__ RowWords(const uint4* row, int units) {
    const int lane = threadIdx.x % 32;
    const uint4 zero = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kPreparedUnits; ++i) {
      // Only column 0 of the eight is a token: the four lanes that hold it.
      const bool reads = lane < 4 && i < units;
      low[i] = reads ? row[i * 8 + lane] : zero;
      high[i] = reads ? row[i * 8 + 4 + lane] : zero;
    }
  }
};
// acc += step `kStep` of four of the product of unit i with the row's words.
template <int kStep>
__device__ __forceinline__ void multiply_step(const UnitHalf& unit, const RowWords& words, int i,
                                              float (&acc)[4]) {
  const uint4& half = kStep < 2 ? words.low[i] : words.high[i];
  uint32_t a[4];
  unit.fragment<kStep>(0, a);
  mma_step(acc, a, kStep % 2 == 0 ? half.x : half.z, kStep % 2 == 0 ? half.y : half.w);
}

// acc += the product of the next chunk's units, operands already, with the row's. Where `more`
// follows at once, the registers take the chunk after it, if that is there.
template <DecodeForm kForm>
__device__ __forceinline__ void multiply(DecodeRing<kForm>& ring, HeldChunk& held, int units,
                                         bool more, const uint4* row, float (&acc)[4]) {
  const RowWords words(row, units);
  if (!held.there) hold(ring, ring.chunk(), held);
  const std::byte* next = more ? ring.chunk_if_there() : nullptr;
#pragma unroll
  for (int i = 0; i < kPreparedUnits; ++i) {
    if (i < units) {
      multiply_step<0>(held.units[i], words, i, acc);
      multiply_step<1>(held.units[i], words, i, acc);
      multiply_step<2>(held.units[i], words, i, acc);
      multiply_step<3>(held.units[i], words, i, acc);
    }
    if (next != nullptr) {
      held.units[i].take<SharedWords>(next + i * UnitHalf::kBytes, nullptr, threadIdx.x % 32);
    }
  }
  held.there = next != nullptr;
  if (held.there) ring.release();
}

// Two such products with the same units of the row, of a chunk each, up's and gate's: their steps
// take turns. Gate's chunk stays in its slot until then, for want of registers.
template <DecodeForm kForm>
__device__ __forceinline__ void multiply_both(DecodeRing<kForm>& ring, HeldChunk& held, int units,
                                              const uint4* row, float (&up)[4], float (&gate)[4]) {
  const RowWords words(row, units);
  if (!held.there) hold(ring, ring.chunk(), held);
  held.there = false;
  const std::byte* chunk = ring.chunk();
#pragma unroll
  for (int i = 0; i < kPreparedUnits; ++i) {
    if (i >= units) break;
    UnitHalf unit;
    unit.take<SharedWords>(chunk + i * UnitHalf::kBytes, nullptr, threadIdx.x % 32);
    multiply_step<0>(held.units[i], words, i, up);
    multiply_step<0>(unit, words, i, gate);
    multiply_step<1>(held.units[i], words, i, up);
    multiply_step<1>(unit, words, i, gate);
    multiply_step<2>(held.units[i], words, i, up);
    multiply_step<2>(unit, words, i, gate);
    multiply_step<3>(held.units[i], words, i, up);
    multiply_step<3>(unit, words, i, gate);
  }
  ring.release();
}

// A warp leaves the sums of an item: parts [16].
__device__ __forceinline__ void leave_sums(const float (&acc)[4], float* parts) {
  const int lane = threadIdx.x % 32;
  if (lane % 4 != 0) return;
  parts[lane / 4] = acc[0];
  parts[lane / 4 + 8] = acc[2];
}

// A unit as stored, and the super words of its block.
template <typename Unit>
__device__ __forceinline__ void take_stored(const std::byte* at, const std::byte* supers,
                                            Unit& unit) {
  unit.template take<SharedWords>(at, reinterpret_cast<const uint32_t*>(supers), threadIdx.x % 32);
}

// acc += the product of a unit with the row's words at `words` in shared memory.
template <typename Unit>
__device__ __forceinline__ void multiply_unit(const Unit& unit, uint32_t words, float (&acc)[4]) {
  const uint4 low = load_shared_quad(words);
  const uint4 high = load_shared_quad(words + 64);
  const int lane = threadIdx.x % 32;
  uint32_t a[4];
  unit.template fragment<0>(lane, a);
  mma_step(acc, a, low.x, low.y);
  unit.template fragment<1>(lane, a);
  mma_step(acc, a, low.z, low.w);
  unit.template fragment<2>(lane, a);
  mma_step(acc, a, high.x, high.y);
  unit.template fragment<3>(lane, a);
  mma_step(acc, a, high.z, high.w);
}

// The sums of a warp's items of one group, [rounds][warps][16], to `parts` from its own on, from
// operands; `follows`: another group does. Items of up and gate, in two rounds, are cut alike.
template <DecodeForm kForm>
__device__ __forceinline__ void run_prepared_items(const DecodeItem& item, int rounds, bool follows,
                                                   const DecodeShared& s, DecodeRing<kForm>& ring,
                                                   HeldChunk& held, float* parts) {
  constexpr int kRoundParts = TeamWork<kForm>::kWarps * kTileRows;
  if (rounds == 2 && item.end - item.begin <= kPreparedUnits) {
    float up[4] = {}, gate[4] = {};
    const bool any = item.begin < item.end;
    if (any) {
      multiply_both(ring, held, item.end - item.begin, s.row() + item.begin * 8, up, gate);
    }
    leave_sums(up, parts);
    leave_sums(gate, parts + kRoundParts);
    if (any && follows) hold_next(ring, held);
    return;
  }
#pragma unroll 1
  for (int round = 1; round <= rounds; ++round, parts += kRoundParts) {
    const bool more = round < rounds || follows;
    float acc[4] = {};
#pragma unroll 1
    for (int begin = item.begin; begin < item.end; begin += kPreparedUnits) {
      multiply(ring, held, min(kPreparedUnits, item.end - begin),
               more || begin + kPreparedUnits < item.end, s.row() + begin * 8, acc);
    }
    leave_sums(acc, parts);
  }
}
// The sums of one item, to parts [16], from what is stored.
template <DecodeForm kForm>
__device__ __forceinline__ void run_direct_item(const DecodeItem& item, const DecodeShared& s,
                                                DecodeRing<kForm>& ring, float* parts) {
  float acc[4] = {};
  if (item.begin < item.end) {
    // Only column 0 of the eight is a token: the four lanes that hold it.
    const int lane = threadIdx.x % 32;
    const uint32_t stride = lane < 4 ? 128 : 0;
    uint32_t words =
        lane < 4 ? shared_address(s.row() + item.begin * 8 + lane) : shared_address(s.zeros());
    with_unit(item.shape->type, [&]<typename Unit>() {
      constexpr int kUnits = UnitsAtOnce(kUnitBytes<Unit>, Unit::kSupers);
      const int chunk_units = item.shape->chunk_units;
#pragma unroll 1
      for (int first = item.begin; first < item.end;) {
        const int end = ChunkEnd(first, item.end, chunk_units, Unit::kSupers);
        const std::byte* at = ring.chunk();
#pragma unroll 1
        while (first < end) {
          const int before = Unit::kSupers ? first % kBlockUnits : 0;  // of its block
          const int count = min(kUnits - before, end - first);
          const std::byte* supers = at + count * kUnitBytes<Unit>;
          if (count == kUnits) {
            // All of them before the first is used: their loads take turns with nothing.
            Unit units[kUnits];
#pragma unroll
            for (int j = 0; j < kUnits; ++j) {
              take_stored(at + j * kUnitBytes<Unit>, at + kUnits * kUnitBytes<Unit>, units[j]);
            }
#pragma unroll
            for (int j = 0; j < kUnits; ++j, words += stride) multiply_unit(units[j], words, acc);
          } else if (Unit::kSupers && count == 2) {
            Unit units[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              take_stored(at + j * kUnitBytes<Unit>, at + 2 * kUnitBytes<Unit>, units[j]);
            }
#pragma unroll
            for (int j = 0; j < 2; ++j, words += stride) multiply_unit(units[j], words, acc);
          } else {
#pragma unroll 1
            for (int j = 0; j < count; ++j, words += stride) {
              Unit unit;
              take_stored(at + j * kUnitBytes<Unit>, supers, unit);
              multiply_unit(unit, words, acc);
            }
          }
          first += count;
          at = supers + (Unit::kSupers ? kSuperBytes : 0);
        }
        ring.release();
      }
    });
  }
  leave_sums(acc, parts);
}

}  // namespace sluice::kernels::cuda
