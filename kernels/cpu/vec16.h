#pragma once

// Sixteen lanes of f32 or i32, thirty-two of i16: one zmm register on AVX-512, two ymm registers on
// AVX2. Kernels written over these types are compiled once for each instruction set and give equal
// bits, because every lane sees the same operations in the same order. Include only from files
// compiled for one of the two; everything lives in a namespace of its own per set, so that no
// inline function of one can be linked into the other. Use no std:: templates with code in such
// files.

#include <immintrin.h>

#include <cstdint>

#ifdef __AVX512F__
#define SLUICE_ISA avx512
#else
#define SLUICE_ISA avx2
#endif

namespace sluice::kernels::cpu::SLUICE_ISA {

#ifdef __AVX512F__

struct F32x16 {
  __m512 v;
};
struct I32x16 {  // also thirty-two i16
  __m512i v;
};

inline F32x16 Zero() { return {_mm512_setzero_ps()}; }
inline I32x16 ZeroI() { return {_mm512_setzero_si512()}; }
inline F32x16 Set1(float x) { return {_mm512_set1_ps(x)}; }
inline I32x16 Set1I32(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I32x16 Set1I16(int16_t x) { return {_mm512_set1_epi16(x)}; }
inline F32x16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline I32x16 LoadI(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void Store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
inline void StoreI(void* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }
inline F32x16 LoadF16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Round to nearest even; beyond 65504 becomes infinite.
inline void StoreF16(uint16_t* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline F32x16 LoadBF16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}
inline F32x16 Add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 Sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 Mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 Div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}  // a * b + c
// As the instruction: the second operand when either is NaN.
inline F32x16 Max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 Min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 Abs(F32x16 a) {
  return {_mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff)))};
}
inline F32x16 RoundNearest(F32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline I32x16 ToI32(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // round to nearest even
inline F32x16 ToF32(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline F32x16 BitsToF32(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
inline I32x16 F32ToBits(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
inline I32x16 AddI32(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32x16 SubI32(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32x16 MaxI32(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline int32_t ReduceAddI32(I32x16 a) { return _mm512_reduce_add_epi32(a.v); }  // exact: any order
inline int32_t ReduceMaxI32(I32x16 a) { return _mm512_reduce_max_epi32(a.v); }
inline I32x16 And(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32x16 Or(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int kBits>
inline I32x16 ShiftRightI16(I32x16 a) {
  return {_mm512_srli_epi16(a.v, kBits)};
}
template <int kBits>
inline I32x16 ShiftRightSignedI16(I32x16 a) {
  return {_mm512_srai_epi16(a.v, kBits)};
}
template <int kBits>
inline I32x16 ShiftLeftI16(I32x16 a) {
  return {_mm512_slli_epi16(a.v, kBits)};
}
template <int kBits>
inline I32x16 ShiftLeftI32(I32x16 a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
inline I32x16 ShiftRightI32(I32x16 a) {
  return {_mm512_srli_epi32(a.v, kBits)};
}
inline I32x16 AddI16(I32x16 a, I32x16 b) { return {_mm512_add_epi16(a.v, b.v)}; }
// a | (b & mask)
inline I32x16 OrMasked(I32x16 a, I32x16 b, I32x16 mask) {
  return {_mm512_ternarylogic_epi32(a.v, b.v, mask.v, 0xf8)};
}
// Bits of a where those of mask are set, of b elsewhere.
inline I32x16 SelectBits(I32x16 mask, I32x16 a, I32x16 b) {
  return {_mm512_ternarylogic_epi32(mask.v, a.v, b.v, 0xca)};
}
// Sixteen bytes at p in every 128 bits: a table for LookUpI8.
inline I32x16 LoadTable(const int8_t* p) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
// table[index] in each of sixty-four bytes; indices 0..15.
inline I32x16 LookUpI8(I32x16 table, I32x16 indices) {
  return {_mm512_shuffle_epi8(table.v, indices.v)};
}
// Thirty-two int8 at p, sign-extended to i16.
inline I32x16 LoadI8AsI16(const int8_t* p) {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Sixteen int8 or uint8 at p as i32.
inline I32x16 LoadI8AsI32(const void* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
inline I32x16 LoadU8AsI32(const void* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
// acc + a[2i] * b[2i] + a[2i+1] * b[2i+1] in each of sixteen i32 lanes, i16 operands, no
// saturation.
inline I32x16 DotI16(I32x16 acc, I32x16 a, I32x16 b) {
  return {_mm512_dpwssd_epi32(acc.v, a.v, b.v)};
}
// Sixteen i32 saturated to i16.
inline void StoreI32AsI16(int16_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(a.v));
}

#else  // AVX2 + FMA + F16C

struct F32x16 {
  __m256 lo, hi;
};
struct I32x16 {
  __m256i lo, hi;
};

inline F32x16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline I32x16 ZeroI() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline F32x16 Set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline I32x16 Set1I32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I32x16 Set1I16(int16_t x) { return {_mm256_set1_epi16(x), _mm256_set1_epi16(x)}; }
inline F32x16 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline I32x16 LoadI(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void Store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline void StoreI(void* p, I32x16 a) {
  __m256i* q = static_cast<__m256i*>(p);
  _mm256_storeu_si256(q, a.lo);
  _mm256_storeu_si256(q + 1, a.hi);
}
inline F32x16 LoadF16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline void StoreF16(uint16_t* p, F32x16 a) {
  __m128i* q = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
inline F32x16 LoadBF16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {
      _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16)),
      _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16))};
}
inline F32x16 Add(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F32x16 Sub(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F32x16 Mul(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F32x16 Div(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32x16 Max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline F32x16 Min(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline F32x16 Abs(F32x16 a) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
inline F32x16 RoundNearest(F32x16 a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kMode), _mm256_round_ps(a.hi, kMode)};
}
inline I32x16 ToI32(F32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F32x16 ToF32(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline F32x16 BitsToF32(I32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline I32x16 F32ToBits(F32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline I32x16 AddI32(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
inline I32x16 SubI32(I32x16 a, I32x16 b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
inline I32x16 MaxI32(I32x16 a, I32x16 b) {
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
inline int32_t ReduceAddI32(I32x16 a) {
  const __m256i eight = _mm256_add_epi32(a.lo, a.hi);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline int32_t ReduceMaxI32(I32x16 a) {
  const __m256i eight = _mm256_max_epi32(a.lo, a.hi);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline I32x16 And(I32x16 a, I32x16 b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
inline I32x16 Or(I32x16 a, I32x16 b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
template <int kBits>
inline I32x16 ShiftRightI16(I32x16 a) {
  return {_mm256_srli_epi16(a.lo, kBits), _mm256_srli_epi16(a.hi, kBits)};
}
template <int kBits>
inline I32x16 ShiftRightSignedI16(I32x16 a) {
  return {_mm256_srai_epi16(a.lo, kBits), _mm256_srai_epi16(a.hi, kBits)};
}
template <int kBits>
inline I32x16 ShiftLeftI16(I32x16 a) {
  return {_mm256_slli_epi16(a.lo, kBits), _mm256_slli_epi16(a.hi, kBits)};
}
template <int kBits>
inline I32x16 ShiftLeftI32(I32x16 a) {
  return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
}
template <int kBits>
inline I32x16 ShiftRightI32(I32x16 a) {
  return {_mm256_srli_epi32(a.lo, kBits), _mm256_srli_epi32(a.hi, kBits)};
}
inline I32x16 AddI16(I32x16 a, I32x16 b) {
  return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)};
}
inline I32x16 OrMasked(I32x16 a, I32x16 b, I32x16 mask) { return Or(a, And(b, mask)); }
inline I32x16 SelectBits(I32x16 mask, I32x16 a, I32x16 b) {
  return {_mm256_or_si256(_mm256_and_si256(mask.lo, a.lo), _mm256_andnot_si256(mask.lo, b.lo)),
          _mm256_or_si256(_mm256_and_si256(mask.hi, a.hi), _mm256_andnot_si256(mask.hi, b.hi))};
}
inline I32x16 LoadTable(const int8_t* p) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {table, table};
}
inline I32x16 LookUpI8(I32x16 table, I32x16 indices) {
  return {_mm256_shuffle_epi8(table.lo, indices.lo), _mm256_shuffle_epi8(table.hi, indices.hi)};
}
inline I32x16 LoadI8AsI16(const int8_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(q)), _mm256_cvtepi8_epi16(_mm_loadu_si128(q + 1))};
}
inline I32x16 LoadI8AsI32(const void* p) {
  const uint8_t* q = static_cast<const uint8_t*>(p);
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q))),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q + 8)))};
}
inline I32x16 LoadU8AsI32(const void* p) {
  const uint8_t* q = static_cast<const uint8_t*>(p);
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q))),
          _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q + 8)))};
}
inline I32x16 DotI16(I32x16 acc, I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.lo, b.lo)),
          _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.hi, b.hi))};
}
inline void StoreI32AsI16(int16_t* p, I32x16 a) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xD8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}

#endif

// Sum of sixteen int16 at p, exact, in every lane.
inline I32x16 SumI16(const int16_t* p) {
  const __m256i pairs = _mm256_madd_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                                          _mm256_set1_epi16(1));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
#ifdef __AVX512F__
  return {_mm512_broadcastd_epi32(four)};
#else
  return {_mm256_broadcastd_epi32(four), _mm256_broadcastd_epi32(four)};
#endif
}

// Sum and maximum over the lanes in one fixed tree.
inline float ReduceAdd(F32x16 a) {
  float lanes[16];
  Store(lanes, a);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}
inline float ReduceMax(F32x16 a) {
  float lanes[16];
  Store(lanes, a);
  float most = lanes[0];
  for (int i = 1; i < 16; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

// exp(x) for x <= 0, never 0 (values below -87.3 give 2^-126: attention keeps 0 for "no tile yet"),
// by one FMA-only polynomial (Cephes expf): the same bits wherever it runs.
inline F32x16 ExpNonPositive(F32x16 x) {
  const F32x16 clamped = Max(x, Set1(-87.33654f));
  const F32x16 n = RoundNearest(Mul(clamped, Set1(1.44269504088896341f)));
  F32x16 r = Fma(n, Set1(-0.693359375f), clamped);
  r = Fma(n, Set1(2.12194440e-4f), r);
  F32x16 p = Set1(1.9875691500e-4f);
  p = Fma(p, r, Set1(1.3981999507e-3f));
  p = Fma(p, r, Set1(8.3334519073e-3f));
  p = Fma(p, r, Set1(4.1665795894e-2f));
  p = Fma(p, r, Set1(1.6666665459e-1f));
  p = Fma(p, r, Set1(5.0000001201e-1f));
  p = Add(Fma(p, Mul(r, r), r), Set1(1.0f));
  const I32x16 exponent = ShiftLeftI32<23>(AddI32(ToI32(n), Set1I32(127)));
  return Mul(p, BitsToF32(exponent));
}

}  // namespace sluice::kernels::cpu::SLUICE_ISA
