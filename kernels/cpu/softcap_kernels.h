#pragma once

// softcap * tanh(x / softcap), for scores and logits. Included by the files compiled for one
// instruction set, as vec16.h is.

#include "kernels/cpu/vec16.h"

namespace sluice::kernels::cpu::SLUICE_ISA {

// a where x < limit, else b (NaN is not below).
inline F32x16 SelectBelow(F32x16 x, float limit, F32x16 a, F32x16 b) {
#ifdef __AVX512F__
  const __mmask16 below = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_LT_OQ);
  return {_mm512_mask_blend_ps(below, b.v, a.v)};
#else
  const __m256 limits = _mm256_set1_ps(limit);
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, limits, _CMP_LT_OQ)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, limits, _CMP_LT_OQ))};
#endif
}

// tanh of finite x: an odd polynomial (Cephes tanhf) below 0.625, where (1 - e) / (1 + e) with e =
// exp(-2 |x|) would lose the digits of a small outcome.
inline F32x16 Tanh(F32x16 x) {
  const F32x16 a = Abs(x);
  const F32x16 z = Mul(a, a);
  F32x16 p = Set1(-5.70498872745e-3f);
  p = Fma(p, z, Set1(2.06390887954e-2f));
  p = Fma(p, z, Set1(-5.37397155531e-2f));
  p = Fma(p, z, Set1(1.33314422036e-1f));
  p = Fma(p, z, Set1(-3.33332819422e-1f));
  const F32x16 small = Fma(Mul(p, z), a, a);
  const F32x16 e = ExpNonPositive(Mul(Set1(-2.0f), a));
  const F32x16 large = Div(Sub(Set1(1.0f), e), Add(Set1(1.0f), e));
  const I32x16 sign = And(F32ToBits(x), Set1I32(INT32_MIN));
  return BitsToF32(Or(F32ToBits(SelectBelow(a, 0.625f, small, large)), sign));
}

// Adding 0 * x makes NaN of what is not finite, which the tanh would hide, and changes nothing
// else.
inline F32x16 Softcap16(F32x16 x, F32x16 softcap) {
  return Fma(x, Zero(), Mul(softcap, Tanh(Div(x, softcap))));
}

}  // namespace sluice::kernels::cpu::SLUICE_ISA
