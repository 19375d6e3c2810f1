#pragma once

// The scans of the sampler over sixteen lanes, included by sampling_avx2.cc and sampling_avx512.cc.
// The arithmetic is that of kernels/core/sample_weight.h, lane for lane.

#include "kernels/core/sample_weight.h"
#include "kernels/cpu/sampling_scan.h"
#include "kernels/cpu/vec16.h"

namespace sluice::kernels::cpu::SLUICE_ISA {

// n in [1, 16] values at p, `pad` after them; reads nothing beyond.
inline F32x16 LoadPadded(const float* p, int64_t n, float pad) {
  if (n == 16) return Load(p);
  float lanes[16];
  for (int64_t i = 0; i < 16; ++i) lanes[i] = i < n ? p[i] : pad;
  return Load(lanes);
}

inline int64_t Fewer(int64_t a, int64_t b) { return a < b ? a : b; }

inline LogitScan Scan(const float* logits, int64_t n, float* block_max) {
  F32x16 poison = Zero();
  float most = -__builtin_inff();
  for (int64_t begin = 0; begin < n; begin += kSampleBlock) {
    const int64_t end = Fewer(n, begin + kSampleBlock);
    F32x16 block = Set1(-__builtin_inff());
    for (int64_t i = begin; i < end; i += 16) {
      // Padded with a value of its own: the padding must neither win nor hide.
      const F32x16 x = LoadPadded(logits + i, Fewer(16, end - i), logits[i]);
      poison = Fma(x, Zero(), poison);
      block = Max(block, x);
    }
    const float m = ReduceMax(block);
    block_max[begin / kSampleBlock] = m;
    most = m > most ? m : most;
  }
  return {most, ReduceAdd(poison) == 0.0f};
}

// Sixteen weights as the integer part of p 2^24 and the shift to the right that follows << 16.
struct SplitWeights {
  I32x16 mantissa;
  I32x16 shift;
};

inline SplitWeights SplitWeightsOf(F32x16 logits, F32x16 max, F32x16 inverse_temperature) {
  // From kLowestExponent down the shift leaves 0, so clamping there is the definition's cut.
  const F32x16 y = Max(Mul(Sub(logits, max), inverse_temperature), Set1(kLowestExponent));
  const F32x16 n = RoundNearest(Mul(y, Set1(kLog2E)));
  F32x16 r = Fma(n, Set1(kMinusLn2High), y);
  r = Fma(n, Set1(kMinusLn2Low), r);
  F32x16 p = Set1(kExpPoly[0]);
  for (int i = 1; i < 6; ++i) p = Fma(p, r, Set1(kExpPoly[i]));
  p = Add(Fma(p, Mul(r, r), r), Set1(1.0f));
  return {ToI32(Mul(p, Set1(0x1p24f))), SubI32(ZeroI(), ToI32(n))};
}

#ifdef __AVX512F__

struct U64x16 {
  __m512i a, b;
};
inline U64x16 ZeroU64() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
inline U64x16 AddU64(U64x16 x, U64x16 y) {
  return {_mm512_add_epi64(x.a, y.a), _mm512_add_epi64(x.b, y.b)};
}
inline void StoreU64(uint64_t* p, U64x16 x) {
  _mm512_storeu_si512(p, x.a);
  _mm512_storeu_si512(p + 8, x.b);
}
inline __m512i ShiftedWeights(__m256i mantissa, __m256i shift) {
  return _mm512_srlv_epi64(_mm512_slli_epi64(_mm512_cvtepu32_epi64(mantissa), 16),
                           _mm512_cvtepu32_epi64(shift));
}
inline U64x16 Join(SplitWeights w) {
  return {ShiftedWeights(_mm512_castsi512_si256(w.mantissa.v), _mm512_castsi512_si256(w.shift.v)),
          ShiftedWeights(_mm512_extracti64x4_epi64(w.mantissa.v, 1),
                         _mm512_extracti64x4_epi64(w.shift.v, 1))};
}

#else

struct U64x16 {
  __m256i a, b, c, d;
};
inline U64x16 ZeroU64() {
  const __m256i zero = _mm256_setzero_si256();
  return {zero, zero, zero, zero};
}
inline U64x16 AddU64(U64x16 x, U64x16 y) {
  return {_mm256_add_epi64(x.a, y.a), _mm256_add_epi64(x.b, y.b), _mm256_add_epi64(x.c, y.c),
          _mm256_add_epi64(x.d, y.d)};
}
inline void StoreU64(uint64_t* p, U64x16 x) {
  __m256i* q = reinterpret_cast<__m256i*>(p);
  _mm256_storeu_si256(q, x.a);
  _mm256_storeu_si256(q + 1, x.b);
  _mm256_storeu_si256(q + 2, x.c);
  _mm256_storeu_si256(q + 3, x.d);
}
inline __m256i ShiftedWeights(__m128i mantissa, __m128i shift) {
  return _mm256_srlv_epi64(_mm256_slli_epi64(_mm256_cvtepu32_epi64(mantissa), 16),
                           _mm256_cvtepu32_epi64(shift));
}
inline U64x16 Join(SplitWeights w) {
  const I32x16 m = w.mantissa;
  const I32x16 s = w.shift;
  return {ShiftedWeights(_mm256_castsi256_si128(m.lo), _mm256_castsi256_si128(s.lo)),
          ShiftedWeights(_mm256_extracti128_si256(m.lo, 1), _mm256_extracti128_si256(s.lo, 1)),
          ShiftedWeights(_mm256_castsi256_si128(m.hi), _mm256_castsi256_si128(s.hi)),
          ShiftedWeights(_mm256_extracti128_si256(m.hi, 1), _mm256_extracti128_si256(s.hi, 1))};
}

#endif

inline uint64_t SumBlocks(const float* logits, int64_t n, float max, float inverse_temperature,
                          uint64_t* block_sum) {
  const F32x16 top = Set1(max);
  const F32x16 inverse = Set1(inverse_temperature);
  uint64_t total = 0;
  for (int64_t begin = 0; begin < n; begin += kSampleBlock) {
    const int64_t end = Fewer(n, begin + kSampleBlock);
    U64x16 sums = ZeroU64();
    for (int64_t i = begin; i < end; i += 16) {
      const F32x16 x = LoadPadded(logits + i, Fewer(16, end - i), -__builtin_inff());
      sums = AddU64(sums, Join(SplitWeightsOf(x, top, inverse)));
    }
    uint64_t lanes[16];
    StoreU64(lanes, sums);
    uint64_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += lanes[i];
    block_sum[begin / kSampleBlock] = sum;
    total += sum;
  }
  return total;
}

inline void BlockWeights(const float* logits, int64_t n, float max, float inverse_temperature,
                         uint64_t* weights) {
  for (int64_t i = 0; i < n; i += 16) {
    const F32x16 x = LoadPadded(logits + i, Fewer(16, n - i), -__builtin_inff());
    StoreU64(weights + i, Join(SplitWeightsOf(x, Set1(max), Set1(inverse_temperature))));
  }
}

}  // namespace sluice::kernels::cpu::SLUICE_ISA
