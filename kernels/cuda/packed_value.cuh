#pragma once

// Single values of a packed weight, by the formats' definitions in f32.

#include <cuda_fp16.h>

#include "kernels/cuda/packed_weight.h"

namespace sluice::kernels::cuda {

__device__ __forceinline__ float low_half(uint32_t word) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffff)));
}
__device__ __forceinline__ float high_half(uint32_t word) { return low_half(word >> 16); }

__device__ inline int packed_quant(const PackedView& w, const uint32_t* chunk, int lane, int j,
                                   int p, int second) {
  const int pair_bit = 16 * second;
  int at = 0;
  uint32_t quant = 0;
  int bits = 0;
  const bool nibbles = w.type != DType::kQ2_K && w.type != DType::kQ3_K;
  if (w.type == DType::kQ8_0) {
    const uint32_t word = chunk[(j / 2 * 32 + lane) * 4 + j % 2 * 2 + p / 2];
    return static_cast<int>(word >> (16 * (p % 2) + 8 * second) & 0xff) - 128;
  }
  if (nibbles) {
    quant = chunk[lane * 4 + j] >> (4 * p + pair_bit) & 15;
    at = 128;
    bits = 4;
  }
  if (w.type == DType::kQ2_K || w.type == DType::kQ3_K || w.type == DType::kQ6_K) {
    const uint32_t word = chunk[at + lane * 2 + j / 2];
    quant |= (word >> (2 * (4 * (j % 2) + p) + pair_bit) & 3) << bits;
    at += 64;
    bits += 2;
  }
  if (w.type == DType::kQ3_K || w.type == DType::kQ5_K || w.type == DType::kQ5_0 ||
      w.type == DType::kQ5_1) {
    quant |= (chunk[at + lane] >> (4 * j + p + pair_bit) & 1) << bits;
  }
  return static_cast<int>(quant);
}

__device__ inline float packed_value(const PackedView& w, int row, int k) {
  const int tile = row / kTileRows;
  const int unit = k / kUnitCols;
  const int j = k % kUnitCols / 16;
  const int p = row % 16 / 8 + k % 16 / 8 * 2;
  const int lane = row % 8 * 4 + k % 8 / 2;
  const int second = k % 2;
  const int64_t index = static_cast<int64_t>(tile) * w.units + unit;
  if (w.type == DType::kF32 || w.type == DType::kF16 || w.type == DType::kBF16) {
    const auto* chunk = reinterpret_cast<const __half*>(w.unit_data + index * 2048);
    const float value = __half2float(chunk[(j * 32 + lane) * 8 + p * 2 + second]);
    return w.row_factors == nullptr ? value : __fmul_rn(value, w.row_factors[row]);
  }
  const bool fifth = w.type == DType::kQ5_0 || w.type == DType::kQ5_1 || w.type == DType::kQ5_K;
  const int bytes = w.type == DType::kQ8_0   ? 1024
                    : w.type == DType::kQ6_K ? 768
                    : w.type == DType::kQ3_K ? 384
                    : w.type == DType::kQ2_K ? 256
                    : fifth                  ? 640
                                             : 512;
  const int words = w.type == DType::kQ4_1 || w.type == DType::kQ5_1 ? 2 : 1;  // of a row's scales
  const int unit_bytes = bytes + words * kTileRows * 4;
  const bool has_supers = w.type == DType::kQ2_K || w.type == DType::kQ3_K ||
                          w.type == DType::kQ4_K || w.type == DType::kQ5_K ||
                          w.type == DType::kQ6_K;
  const std::byte* data = w.unit_data + UnitAt(index, unit_bytes, has_supers ? kSuperBytes : 0);
  const auto* chunk = reinterpret_cast<const uint32_t*>(data);
  const int quant = packed_quant(w, chunk, lane, j, p, second);
  const float q = static_cast<float>(quant);
  const auto* scales = reinterpret_cast<const uint32_t*>(data + bytes) + row % kTileRows * words;
  const uint32_t word = scales[0];
  switch (w.type) {
    case DType::kQ4_1:
    case DType::kQ5_1: {
      const uint32_t dm = scales[j / 2];
      return __fadd_rn(__fmul_rn(low_half(dm), q), high_half(dm));
    }
    case DType::kQ4_0:
      return __fmul_rn(low_half(word >> (j / 2 * 16)), q - 8.0f);
    case DType::kQ5_0:
      return __fmul_rn(low_half(word >> (j / 2 * 16)), q - 16.0f);
    case DType::kQ8_0:
      return __fmul_rn(low_half(word >> (j / 2 * 16)), q);
    case DType::kIQ4_NL: {
      constexpr int8_t kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
      return __fmul_rn(low_half(word >> (j / 2 * 16)), static_cast<float>(kLevels[quant]));
    }
    default:
      break;
  }
  const uint32_t super =
      reinterpret_cast<const uint32_t*>(w.unit_data + SupersAt(index, unit_bytes))[row % kTileRows];
  if (w.type == DType::kQ4_K || w.type == DType::kQ5_K || w.type == DType::kQ2_K) {
    const bool two = w.type == DType::kQ2_K;
    const uint32_t scale = two ? word >> (8 * j) & 15 : word >> (j / 2 * 16) & 0xff;
    const uint32_t minimum = two ? word >> (8 * j + 4) & 15 : word >> (j / 2 * 16 + 8) & 0xff;
    const float s = __fmul_rn(low_half(super), static_cast<float>(scale));
    const float m = __fmul_rn(high_half(super), static_cast<float>(minimum));
    return __fsub_rn(__fmul_rn(s, q), m);
  }
  const float offset = w.type == DType::kQ6_K ? 32.0f : 4.0f;
  const float s =
      __fmul_rn(low_half(super), static_cast<float>(static_cast<int8_t>(word >> (8 * j) & 0xff)));
  return __fmul_rn(s, q - offset);
}

}  // namespace sluice::kernels::cuda
