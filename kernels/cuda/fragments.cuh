#pragma once

// What a lane makes of a packed unit: f16 operands of mma.sync.m16n8k16, dequantised. The value of
// a weight is its format's definition in f16: of legacy types the exact product, or product and
// sum, rounded once; of K-quants the sub-block's scale and minimum (super-block's times its own)
// are rounded too, which takes half the instructions of a sum in f32 (docs/numerics.md).

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/packed_weight.h"

namespace sluice::kernels::cuda {

__device__ __forceinline__ uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ uint32_t load_word(const void* p) {
  uint32_t v;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
__device__ __forceinline__ uint2 load_words(const void* p) {
  uint2 v;
  asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

// How units read: weights in device memory, or a copy of them in shared memory.
struct GlobalWords {
  __device__ static uint4 four(const void* p) { return load_stream(p); }
  __device__ static uint2 two(const void* p) { return load_words(p); }
  __device__ static uint32_t one(const void* p) { return load_word(p); }
};
struct SharedWords {
  __device__ static uint4 four(const void* p) { return *static_cast<const uint4*>(p); }
  __device__ static uint2 two(const void* p) { return *static_cast<const uint2*>(p); }
  __device__ static uint32_t one(const void* p) { return *static_cast<const uint32_t*>(p); }
};

__device__ __forceinline__ half2 as_half2(uint32_t bits) {
  half2 h;
  memcpy(&h, &bits, 4);
  return h;
}
__device__ __forceinline__ uint32_t as_bits(half2 h) {
  uint32_t bits;
  memcpy(&bits, &h, 4);
  return bits;
}
// (a & mask) | c in one instruction.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t mask, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(mask), "r"(c));
  return d;
}
// 1024 + q in both halves: an f16 whose last bits are the integer q.
constexpr uint32_t kHalf1024 = 0x64006400u;
// The f16 of an integer from 1 to 2047, in both halves.
__host__ __device__ constexpr uint32_t halves_of(uint32_t value) {
  uint32_t exponent = 0;
  while (value >> (exponent + 1) != 0) ++exponent;
  return ((exponent + 15) << 10 | (value << (10 - exponent) & 1023)) * 0x00010001u;
}
// q - kOffset, exact, of bits that are 1024 + (q << kPlace) in both halves.
template <int kPlace, int kOffset>
__device__ __forceinline__ half2 integers_at(uint32_t bits) {
  constexpr uint32_t kBase = (1024u >> kPlace) + kOffset;
  if constexpr (kPlace == 0) {
    return __hsub2(as_half2(bits), as_half2(halves_of(kBase)));
  } else {
    constexpr uint32_t kPower = (15u - kPlace) * 0x04000400u;  // 2^-kPlace
    return __hfma2(as_half2(bits), as_half2(kPower), as_half2(halves_of(kBase) ^ 0x80008000u));
  }
}
// Bits `at` and 16 + `at` of a plane are the first of a pair's quants. One operation takes out what
// is shifted to bit `at` % 8, so that most pairs need no shift.
__host__ __device__ constexpr int place_of(int at) { return at % 8; }
// `bits` with the kCount bits of `plane` at kAt and 16 + kAt, put at kTo and 16 + kTo.
template <int kCount, int kAt, int kTo>
__device__ __forceinline__ uint32_t with_bits(uint32_t plane, uint32_t bits) {
  constexpr uint32_t kMask = ((1u << kCount) - 1u) * 0x00010001u << kTo;
  if constexpr (kAt >= kTo)
    return and_or(plane >> (kAt - kTo), kMask, bits);
  else
    return and_or(plane << (kTo - kAt), kMask, bits);
}

// Words of an array of four or fewer registers by a constant index.
__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <typename Unit>
inline constexpr int kUnitBytes = Unit::kBytes + Unit::kScaleWords* kTileRows * 4;
template <typename Unit>
__device__ __forceinline__ const std::byte* unit_at(const PackedView& w, int tile, int unit) {
  const int64_t index = static_cast<int64_t>(tile) * w.units + unit;
  return w.unit_data + UnitAt(index, kUnitBytes<Unit>, Unit::kSupers ? kSuperBytes : 0);
}

// ---- half-precision weights

struct UnitHalf {
  static constexpr int kBytes = 2048;  // of quants
  static constexpr int kScaleWords = 0;
  static constexpr bool kSupers = false;

  uint4 steps[4];

  // `chunk`: the unit's quants and scales; supers, where there are any, of its tile's first row.
  template <typename Words>
  __device__ void take(const std::byte* chunk, const uint32_t*, int lane) {
#pragma unroll
    for (int j = 0; j < 4; ++j) steps[j] = Words::four(chunk + j * 512 + lane * 16);
  }
  __device__ void load(const PackedView& w, int tile, int unit, int lane) {
    take<GlobalWords>(unit_at<UnitHalf>(w, tile, unit), nullptr, lane);
  }
  template <int j>
  __device__ void fragment(int, uint32_t (&a)[4]) const {
    a[0] = steps[j].x;
    a[1] = steps[j].y;
    a[2] = steps[j].z;
    a[3] = steps[j].w;
  }
};

// ---- blocks of 32 with an f16 scale, maybe a minimum

template <DType kType>
struct UnitLegacy {
  static constexpr bool kMinimum = kType == DType::kQ4_1 || kType == DType::kQ5_1;
  static constexpr bool kFifthBit = kType == DType::kQ5_0 || kType == DType::kQ5_1;
  static constexpr int kBytes = kType == DType::kQ8_0 ? 1024 : kFifthBit ? 640 : 512;
  static constexpr int kScaleWords = kMinimum ? 2 : 1;
  static constexpr bool kSupers = false;

  uint4 low;                       // nibbles of the four steps, or bytes of the first two
  uint4 high;                      // Q8_0: of the last two
  uint32_t fifth;                  // bits
  uint32_t scale[2][kScaleWords];  // of rows g and g + 8

  template <typename Words>
  __device__ void take(const std::byte* chunk, const uint32_t*, int lane) {
    const auto* scales = reinterpret_cast<const uint32_t*>(chunk + kBytes);
    low = Words::four(chunk + lane * 16);
    if constexpr (kType == DType::kQ8_0) high = Words::four(chunk + 512 + lane * 16);
    if constexpr (kFifthBit) fifth = Words::one(chunk + 512 + lane * 4);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t* row = scales + (lane / 4 + r * 8) * kScaleWords;
      if constexpr (kMinimum) {
        const uint2 words = Words::two(row);
        scale[r][0] = words.x;
        scale[r][1] = words.y;
      } else {
        scale[r][0] = Words::one(row);
      }
    }
  }
  __device__ void load(const PackedView& w, int tile, int unit, int lane) {
    take<GlobalWords>(unit_at<UnitLegacy>(w, tile, unit), nullptr, lane);
  }

  // The quants of pair p of step j as exact f16 integers, whatever the type's offset.
  template <int j, int p>
  __device__ half2 integers() const {
    if constexpr (kType == DType::kQ8_0) {
      const uint32_t word = word_of(j < 2 ? low : high, j % 2 * 2 + p / 2);
      const uint32_t bytes = __byte_perm(word, 0x64646464u, p % 2 == 0 ? 0x4140 : 0x4342);
      return integers_at<0, 128>(bytes);
    } else if constexpr (kType == DType::kIQ4_NL) {
      // The format's sixteen levels plus 128, looked up by eights.
      const uint32_t indices = word_of(low, j) >> (p < 2 ? 0 : 8);
      const uint32_t first = level(indices >> (4 * (p % 2)) & 15);
      const uint32_t second = level(indices >> (16 + 4 * (p % 2)) & 15);
      return integers_at<0, 128>(kHalf1024 | first | second << 16);
    } else {
      constexpr int kPlace = place_of(4 * p);
      constexpr int kOffset = kType == DType::kQ4_0 ? 8 : kType == DType::kQ5_0 ? 16 : 0;
      uint32_t bits = with_bits<4, 4 * p, kPlace>(word_of(low, j), kHalf1024);
      if constexpr (kFifthBit) bits = with_bits<1, 4 * j + p, kPlace + 4>(fifth, bits);
      return integers_at<kPlace, kOffset>(bits);
    }
  }

  __device__ static uint32_t level(uint32_t index) {
    // -127 -104 -83 -65 | -49 -35 -22 -10 | 1 13 25 38 | 53 69 89 113, plus 128.
    const uint32_t lower = __byte_perm(0x3f2d1801u, 0x766a5d4fu, index & 7);
    const uint32_t upper = __byte_perm(0xa6998d81u, 0xf1d9c5b5u, index & 7);
    return (index < 8 ? lower : upper) & 0xffu;
  }

  template <int j>
  __device__ void fragment(int, uint32_t (&a)[4]) const {
    make_pair<j, 0>(a);
    make_pair<j, 1>(a);
    make_pair<j, 2>(a);
    make_pair<j, 3>(a);
  }

 private:
  template <int j, int p>
  __device__ void make_pair(uint32_t (&a)[4]) const {
    const half2 q = integers<j, p>();
    if constexpr (kMinimum) {
      const half2 dm = as_half2(scale[p % 2][j / 2]);
      a[p] = as_bits(__hfma2(q, __low2half2(dm), __high2half2(dm)));
    } else {
      const half2 d = as_half2(scale[p % 2][0]);
      a[p] = as_bits(__hmul2(q, j < 2 ? __low2half2(d) : __high2half2(d)));
    }
  }
};

// ---- blocks of 256

template <DType kType>
struct UnitSuper {
  static constexpr bool kNibbles =
      kType == DType::kQ4_K || kType == DType::kQ5_K || kType == DType::kQ6_K;
  static constexpr bool kTwoBits =
      kType == DType::kQ2_K || kType == DType::kQ3_K || kType == DType::kQ6_K;
  static constexpr bool kOneBit = kType == DType::kQ5_K || kType == DType::kQ3_K;
  static constexpr bool kMinimum =
      kType == DType::kQ4_K || kType == DType::kQ5_K || kType == DType::kQ2_K;
  static constexpr int kTwoBitsAt = kNibbles ? 512 : 0;
  static constexpr int kOneBitAt = kTwoBitsAt + (kTwoBits ? 256 : 0);
  static constexpr int kBytes = (kNibbles ? 512 : 0) + (kTwoBits ? 256 : 0) + (kOneBit ? 128 : 0);
  static constexpr int kScaleWords = 1;
  static constexpr bool kSupers = true;

  uint4 nibbles;
  uint2 twos;
  uint32_t ones;
  uint32_t scale[2];  // of rows g and g + 8
  uint32_t super[2];

  template <typename Words>
  __device__ void take(const std::byte* chunk, const uint32_t* supers, int lane) {
    const auto* scales = reinterpret_cast<const uint32_t*>(chunk + kBytes);
    if constexpr (kNibbles) nibbles = Words::four(chunk + lane * 16);
    if constexpr (kTwoBits) twos = Words::two(chunk + kTwoBitsAt + lane * 8);
    if constexpr (kOneBit) ones = Words::one(chunk + kOneBitAt + lane * 4);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      scale[r] = Words::one(scales + lane / 4 + r * 8);
      super[r] = Words::one(supers + lane / 4 + r * 8);
    }
  }
  __device__ void load(const PackedView& w, int tile, int unit, int lane) {
    const int64_t index = static_cast<int64_t>(tile) * w.units + unit;
    const std::byte* supers = w.unit_data + SupersAt(index, kUnitBytes<UnitSuper>);
    take<GlobalWords>(unit_at<UnitSuper>(w, tile, unit), reinterpret_cast<const uint32_t*>(supers),
                      lane);
  }

  template <int j>
  __device__ void fragment(int, uint32_t (&a)[4]) const {
    make_pair<j, 0>(a);
    make_pair<j, 1>(a);
    make_pair<j, 2>(a);
    make_pair<j, 3>(a);
  }

 private:
  template <int j, int p>
  __device__ half2 integers() const {
    constexpr int kTwoAt = 2 * (4 * (j % 2) + p);
    constexpr int kPlace = place_of(kNibbles ? 4 * p : kTwoAt);
    constexpr int kOffset = kType == DType::kQ6_K ? 32 : kType == DType::kQ3_K ? 4 : 0;
    uint32_t bits = kHalf1024;
    if constexpr (kNibbles) bits = with_bits<4, 4 * p, kPlace>(word_of(nibbles, j), bits);
    if constexpr (kTwoBits) {
      bits = with_bits<2, kTwoAt, kPlace + (kNibbles ? 4 : 0)>(j < 2 ? twos.x : twos.y, bits);
    }
    if constexpr (kOneBit) bits = with_bits<1, 4 * j + p, kPlace + (kNibbles ? 4 : 2)>(ones, bits);
    return integers_at<kPlace, kOffset>(bits);
  }

  // Scale and minimum of step j in row g + 8 r, where the type has minima.
  template <int j, int r>
  __device__ half2 scale_and_minimum() const {
    uint32_t bytes = scale[r];
    int selector = j < 2 ? 0x4140 : 0x4342;
    if constexpr (kType == DType::kQ2_K) {  // a byte a step, the minimum in its upper half
      bytes = (bytes >> (8 * j) & 0x0fu) | (bytes >> (8 * j) & 0xf0u) << 4;
      selector = 0x4140;
    }
    const half2 whole = integers_at<0, 0>(__byte_perm(bytes, 0x64646464u, selector));
    return __hmul2(whole, as_half2(super[r]));
  }
  // Scales of steps j & ~1 and j | 1 in row g + 8 r, where the type has none.
  template <int j, int r>
  __device__ half2 two_scales() const {
    const uint32_t bytes =
        __byte_perm(scale[r] ^ 0x80808080u, 0x64646464u, j < 2 ? 0x4140 : 0x4342);
    return __hmul2(integers_at<0, 128>(bytes), __low2half2(as_half2(super[r])));
  }

  template <int j, int p>
  __device__ void make_pair(uint32_t (&a)[4]) const {
    constexpr int r = p % 2;
    if constexpr (kMinimum) {
      const half2 sm = scale_and_minimum<j, r>();
      a[p] = as_bits(__hfma2(integers<j, p>(), __low2half2(sm), __hneg2(__high2half2(sm))));
    } else {
      const half2 s = two_scales<j, r>();
      a[p] = as_bits(__hmul2(integers<j, p>(), j % 2 == 0 ? __low2half2(s) : __high2half2(s)));
    }
  }
};

// Calls fn<Unit>() for the form that `type` is packed in.
template <typename Fn>
__device__ __forceinline__ void with_unit(DType type, const Fn& fn) {
  switch (type) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return fn.template operator()<UnitHalf>();
    case DType::kQ4_0:
      return fn.template operator()<UnitLegacy<DType::kQ4_0>>();
    case DType::kQ4_1:
      return fn.template operator()<UnitLegacy<DType::kQ4_1>>();
    case DType::kQ5_0:
      return fn.template operator()<UnitLegacy<DType::kQ5_0>>();
    case DType::kQ5_1:
      return fn.template operator()<UnitLegacy<DType::kQ5_1>>();
    case DType::kQ8_0:
      return fn.template operator()<UnitLegacy<DType::kQ8_0>>();
    case DType::kIQ4_NL:
      return fn.template operator()<UnitLegacy<DType::kIQ4_NL>>();
    case DType::kQ2_K:
      return fn.template operator()<UnitSuper<DType::kQ2_K>>();
    case DType::kQ3_K:
      return fn.template operator()<UnitSuper<DType::kQ3_K>>();
    case DType::kQ4_K:
      return fn.template operator()<UnitSuper<DType::kQ4_K>>();
    case DType::kQ5_K:
      return fn.template operator()<UnitSuper<DType::kQ5_K>>();
    case DType::kQ6_K:
      return fn.template operator()<UnitSuper<DType::kQ6_K>>();
  }
}

}  // namespace sluice::kernels::cuda
