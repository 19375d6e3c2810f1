#pragma once

// Reads single values of blocks as stored in a GGUF file (ggml-common.h): the raw quants and the
// scales that repacking moves about. kernels/ref/dequantize.cc is the definition.

#include <cstdint>

#include "kernels/core/dtype.h"

namespace sluice::kernels::cuda {

__device__ inline uint32_t stored_half(const uint8_t* p) { return p[0] | p[1] << 8; }

__device__ inline uint32_t stored_nibble(const uint8_t* nibbles, int i) {
  return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
}
__device__ inline uint32_t stored_four_bits(const uint8_t* quants, int i) {
  return quants[i / 64 * 32 + i % 32] >> (4 * (i % 64 / 32)) & 15;
}
__device__ inline uint32_t stored_two_bits(const uint8_t* quants, int i) {
  return quants[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
}
__device__ inline uint32_t stored_bit(const uint8_t* word, int i) {
  return word[i / 8] >> (i % 8) & 1;
}

// The quant of value i of a block as an unsigned integer (signed ones plus 128).
__device__ inline uint32_t stored_quant(DType type, const uint8_t* block, int i) {
  switch (type) {
    case DType::kQ4_0:
    case DType::kIQ4_NL:
      return stored_nibble(block + 2, i);
    case DType::kQ4_1:
      return stored_nibble(block + 4, i);
    case DType::kQ5_0:
      return stored_nibble(block + 6, i) | stored_bit(block + 2, i) << 4;
    case DType::kQ5_1:
      return stored_nibble(block + 8, i) | stored_bit(block + 4, i) << 4;
    case DType::kQ8_0:
      return block[2 + i] ^ 0x80u;
    case DType::kQ2_K:
      return stored_two_bits(block + 16, i);
    case DType::kQ3_K:
      return stored_two_bits(block + 32, i) | (block[i % 32] >> (i / 32) & 1u) << 2;
    case DType::kQ4_K:
      return stored_four_bits(block + 16, i);
    case DType::kQ5_K:
      return stored_four_bits(block + 48, i) | (block[16 + i % 32] >> (i / 32) & 1u) << 4;
    case DType::kQ6_K: {
      const int half = i / 128;
      const uint32_t low = block[half * 64 + i % 64] >> (4 * (i % 128 / 64)) & 15;
      const uint32_t high = block[128 + half * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
      return low | high << 4;
    }
    default:
      return 0;
  }
}

// Six-bit scale (low byte) and minimum of sub-block `sub` of eight (Q4_K, Q5_K).
__device__ inline uint32_t stored_scale_minimum(const uint8_t* packed, int sub) {
  if (sub < 4) return (packed[sub] & 63u) | (packed[sub + 4] & 63u) << 8;
  const uint32_t scale = (packed[sub + 4] & 15u) | packed[sub - 4] >> 6 << 4;
  const uint32_t minimum = packed[sub + 4] >> 4 | packed[sub] >> 6 << 4;
  return scale | minimum << 8;
}

// Four bytes of scales for the 64 columns `quarter` of a block of 256.
__device__ inline uint32_t stored_super_scales(DType type, const uint8_t* block, int quarter) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const int sub = quarter * 4 + i;  // of sixteen
    uint32_t byte = 0;
    if (type == DType::kQ2_K) {
      byte = block[sub];
    } else if (type == DType::kQ6_K) {
      byte = block[192 + sub];
    } else if (type == DType::kQ3_K) {
      const uint8_t* packed = block + 96;
      const uint32_t low = sub < 8 ? packed[sub] & 15 : packed[sub - 8] >> 4;
      const uint32_t high = packed[8 + sub % 4] >> (2 * (sub / 4)) & 3;
      byte = ((low | high << 4) - 32) & 0xffu;
    } else {
      const uint32_t pair = stored_scale_minimum(block + 4, quarter * 2 + i / 2);
      byte = pair >> (8 * (i % 2)) & 0xffu;
    }
    word |= byte << (8 * i);
  }
  return word;
}

// (d, dmin) of a block of 256, f16 each; dmin 0 where the type has none.
__device__ inline uint32_t stored_super_d(DType type, const uint8_t* block) {
  switch (type) {
    case DType::kQ2_K:
      return stored_half(block + 80) | stored_half(block + 82) << 16;
    case DType::kQ3_K:
      return stored_half(block + 108);
    case DType::kQ6_K:
      return stored_half(block + 208);
    default:
      return stored_half(block) | stored_half(block + 2) << 16;
  }
}

}  // namespace sluice::kernels::cuda
