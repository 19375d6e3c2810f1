#pragma once

// Vectors that blocks of one running kernel hand to each other through L2. A value is its own flag:
// the memory holds kAbsent until the value is there, so a reader waits for the value itself, and
// writer and reader meet after one write and one read, without fence or counter.

#include <cstdint>

namespace sluice::kernels::cuda {

inline constexpr uint32_t kAbsent = 0xffffffffu;  // a NaN that no arithmetic makes

// Cycles after which a wait gives the kernel up: about two seconds. Only a broken program waits so
// long; the error is a sticky one, which takes the engine out of service.
inline constexpr long long kPatienceCycles = 4'000'000'000;

__device__ __forceinline__ uint32_t present_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits == kAbsent ? 0x7fc00000u : bits;
}
__device__ __forceinline__ void hand_over(float* to, float value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(present_bits(value))
               : "memory");
}

// Four neighbouring values at a multiple of 16 bytes.
__device__ __forceinline__ void hand_over_quad(float* to, const float4& value) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to),
               "r"(present_bits(value.x)), "r"(present_bits(value.y)), "r"(present_bits(value.z)),
               "r"(present_bits(value.w))
               : "memory");
}

__device__ __forceinline__ void give_up_after(long long begin) {
  if (clock64() - begin > kPatienceCycles) __trap();
}

// Looks take vectors in shared memory as well, which are always there.
__device__ __forceinline__ uint32_t look(const float* from) {
  uint32_t bits;
  asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(bits) : "l"(from) : "memory");
  return bits;
}
__device__ __forceinline__ uint4 look_quad(const float* from) {
  uint4 bits;
  asm volatile("ld.relaxed.gpu.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
               : "l"(from)
               : "memory");
  return bits;
}

// Waits for one value, or for four neighbouring ones at a multiple of 16 bytes.
__device__ __forceinline__ float take(const float* from) {
  uint32_t bits = look(from);
  if (bits == kAbsent) {
    const long long begin = clock64();
    while ((bits = look(from)) == kAbsent) give_up_after(begin);
  }
  return __uint_as_float(bits);
}
__device__ __forceinline__ bool absent(const uint4& bits) {
  return bits.x == kAbsent || bits.y == kAbsent || bits.z == kAbsent || bits.w == kAbsent;
}
__device__ __forceinline__ uint4 take_bits(const float* from) {
  uint4 bits = look_quad(from);
  if (absent(bits)) {
    const long long begin = clock64();
    while (absent(bits = look_quad(from))) give_up_after(begin);
  }
  return bits;
}
__device__ __forceinline__ float4 as_floats(const uint4& bits) {
  return make_float4(__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                     __uint_as_float(bits.w));
}
__device__ __forceinline__ float4 take_quad(const float* from) {
  return as_floats(take_bits(from));
}

}  // namespace sluice::kernels::cuda
