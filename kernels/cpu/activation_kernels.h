#pragma once

// How an activation row becomes blocks of 32 int16 with one scale and one sum each. Included by the
// files compiled for one instruction set, as vec16.h is.

#include "kernels/cpu/vec16.h"

namespace sluice::kernels::cpu::SLUICE_ISA {

// values [cols], cols a multiple of 32 -> quants [cols], scales and sums [cols / 32]:
//   amax  = largest magnitude of the block
//   scale = amax / 32767, quant = round to nearest even of value * (32767 / amax), sum = scale *
//   (integer sum of the block's quants).
// A block whose amax is 0, or so small (< 2^-110) that 32767 / amax would overflow, becomes all
// zero. A block with a NaN or an infinity gets scale and sum NaN, so that every product with it
// shows it.
inline void QuantizeRow(const float* values, int64_t cols, int16_t* quants, float* scales,
                        float* sums) {
  for (int64_t block = 0; block < cols / 32; ++block) {
    const F32x16 a = Load(values + block * 32);
    const F32x16 b = Load(values + block * 32 + 16);
    // Magnitudes are ordered as their bits are, a NaN above infinity above all others.
    const I32x16 magnitudes = MaxI32(F32ToBits(Abs(a)), F32ToBits(Abs(b)));
    const int32_t amax_bits = ReduceMaxI32(magnitudes);
    float amax;
    __builtin_memcpy(&amax, &amax_bits, sizeof(amax));
    const bool finite = amax_bits < 0x7f800000;
    const bool zero = finite && amax < 0x1p-110f;
    const F32x16 inverse = Set1(zero || !finite ? 0.0f : 32767.0f / amax);
    const I32x16 qa = ToI32(Mul(a, inverse));
    const I32x16 qb = ToI32(Mul(b, inverse));
    StoreI32AsI16(quants + block * 32, qa);
    StoreI32AsI16(quants + block * 32 + 16, qb);
    const int32_t total = ReduceAddI32(AddI32(qa, qb));
    const float scale = zero ? 0.0f : finite ? amax / 32767.0f : __builtin_nanf("");
    scales[block] = scale;
    sums[block] = scale * static_cast<float>(total);
  }
}

}  // namespace sluice::kernels::cpu::SLUICE_ISA
