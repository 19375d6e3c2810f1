// The block formats of GGUF, as ggml's ggml-common.h lays them out and the gguf Python package
// decodes them. Each value is made in f32: one product with the block's (or sub-block's) scale and,
// where there is a minimum, one sum.

#include <cstring>

#include "kernels/core/half.h"
#include "kernels/ops.h"

namespace sluice::kernels {
namespace {

float Half(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return HalfToFloat(bits);
}

uint32_t Word(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// ---- types of one value a block

void BlockF32(const uint8_t* p, float* out) { std::memcpy(out, p, sizeof(float)); }
void BlockF16(const uint8_t* p, float* out) { *out = Half(p); }
void BlockBF16(const uint8_t* p, float* out) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  *out = BFloat16ToFloat(bits);
}

// ---- blocks of 32: low nibbles are values 0..15, high ones 16..31

int Nibble(const uint8_t* nibbles, int i) {
  return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
}

void BlockQ4_0(const uint8_t* p, float* out) {
  const float d = Half(p);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(Nibble(p + 2, i) - 8);
}

void BlockQ4_1(const uint8_t* p, float* out) {
  const float d = Half(p);
  const float m = Half(p + 2);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(Nibble(p + 4, i)) + m;
}

// The fifth bits of all 32 values stand in one word.
void BlockQ5_0(const uint8_t* p, float* out) {
  const float d = Half(p);
  const uint32_t high = Word(p + 2);
  for (int i = 0; i < 32; ++i) {
    const int quant = Nibble(p + 6, i) | static_cast<int>(high >> i & 1) << 4;
    out[i] = d * static_cast<float>(quant - 16);
  }
}

void BlockQ5_1(const uint8_t* p, float* out) {
  const float d = Half(p);
  const float m = Half(p + 2);
  const uint32_t high = Word(p + 4);
  for (int i = 0; i < 32; ++i) {
    const int quant = Nibble(p + 8, i) | static_cast<int>(high >> i & 1) << 4;
    out[i] = d * static_cast<float>(quant) + m;
  }
}

void BlockQ8_0(const uint8_t* p, float* out) {
  const float d = Half(p);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(p[2 + i]));
}

void BlockIQ4_NL(const uint8_t* p, float* out) {
  // The format's table of levels.
  static constexpr int8_t kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                         1,    13,   25,  38,  53,  69,  89,  113};
  const float d = Half(p);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(kLevels[Nibble(p + 2, i)]);
}

// ---- blocks of 256

// Two bits of value i: bytes 0..31 hold values 0..127, 32 apart, two bits each; bytes 32..63 the
// rest.
int TwoBits(const uint8_t* quants, int i) {
  return quants[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
}

// u8 scale (low nibble) and minimum (high) for each 16 values, u8 quants[64], f16 d, f16 dmin.
void BlockQ2_K(const uint8_t* p, float* out) {
  const float d = Half(p + 80);
  const float dmin = Half(p + 82);
  for (int i = 0; i < 256; ++i) {
    const float scale = d * static_cast<float>(p[i / 16] & 15);
    const float minimum = dmin * static_cast<float>(p[i / 16] >> 4);
    out[i] = scale * static_cast<float>(TwoBits(p + 16, i)) - minimum;
  }
}

// u8 high_bits[32], u8 quants[64], six-bit scales of 16 values each in 12 bytes, f16 d.
void BlockQ3_K(const uint8_t* p, float* out) {
  const float d = Half(p + 108);
  const uint8_t* packed = p + 96;
  for (int i = 0; i < 256; ++i) {
    const int sub = i / 16;
    // Low four bits: bytes 0..7, nibble by nibble; high two bits: bytes 8..11, pair by pair.
    const int low = sub < 8 ? packed[sub] & 15 : packed[sub - 8] >> 4;
    const int high = packed[8 + sub % 4] >> (2 * (sub / 4)) & 3;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    // A missing high bit subtracts 4.
    const int quant = TwoBits(p + 32, i) - ((p[i % 32] >> (i / 32) & 1) != 0 ? 0 : 4);
    out[i] = scale * static_cast<float>(quant);
  }
}

// Six-bit scale and minimum of sub-block `sub` of eight, in 12 bytes (Q4_K, Q5_K).
void ScaleAndMinimum(const uint8_t* packed, int sub, int* scale, int* minimum) {
  if (sub < 4) {
    *scale = packed[sub] & 63;
    *minimum = packed[sub + 4] & 63;
  } else {
    *scale = (packed[sub + 4] & 15) | packed[sub - 4] >> 6 << 4;
    *minimum = packed[sub + 4] >> 4 | packed[sub] >> 6 << 4;
  }
}

// Four bits of value i: 32 bytes hold 64 values, low nibbles first.
int FourBits(const uint8_t* quants, int i) {
  return quants[i / 64 * 32 + i % 32] >> (4 * (i % 64 / 32)) & 15;
}

// f16 d, f16 dmin, scales[12], quants[128].
void BlockQ4_K(const uint8_t* p, float* out) {
  const float d = Half(p);
  const float dmin = Half(p + 2);
  for (int i = 0; i < 256; ++i) {
    int scale, minimum;
    ScaleAndMinimum(p + 4, i / 32, &scale, &minimum);
    out[i] = d * static_cast<float>(scale) * static_cast<float>(FourBits(p + 16, i)) -
             dmin * static_cast<float>(minimum);
  }
}

// f16 d, f16 dmin, scales[12], high_bits[32], quants[128].
void BlockQ5_K(const uint8_t* p, float* out) {
  const float d = Half(p);
  const float dmin = Half(p + 2);
  for (int i = 0; i < 256; ++i) {
    int scale, minimum;
    ScaleAndMinimum(p + 4, i / 32, &scale, &minimum);
    const int quant = FourBits(p + 48, i) | (p[16 + i % 32] >> (i / 32) & 1) << 4;
    out[i] = d * static_cast<float>(scale) * static_cast<float>(quant) -
             dmin * static_cast<float>(minimum);
  }
}

// low_bits[128], high_bits[64], i8 scales[16], f16 d.
void BlockQ6_K(const uint8_t* p, float* out) {
  const float d = Half(p + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128;
    const int low = p[half * 64 + i % 64] >> (4 * (i % 128 / 64)) & 15;
    const int high = p[128 + half * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
    const float scale = d * static_cast<float>(static_cast<int8_t>(p[192 + i / 16]));
    out[i] = scale * static_cast<float>((low | high << 4) - 32);
  }
}

using BlockFn = void (*)(const uint8_t* stored, float* out);

BlockFn BlockOf(DType type) {
  switch (type) {
    case DType::kF32:
      return BlockF32;
    case DType::kF16:
      return BlockF16;
    case DType::kBF16:
      return BlockBF16;
    case DType::kQ4_0:
      return BlockQ4_0;
    case DType::kQ4_1:
      return BlockQ4_1;
    case DType::kQ5_0:
      return BlockQ5_0;
    case DType::kQ5_1:
      return BlockQ5_1;
    case DType::kQ8_0:
      return BlockQ8_0;
    case DType::kQ2_K:
      return BlockQ2_K;
    case DType::kQ3_K:
      return BlockQ3_K;
    case DType::kQ4_K:
      return BlockQ4_K;
    case DType::kQ5_K:
      return BlockQ5_K;
    case DType::kQ6_K:
      return BlockQ6_K;
    case DType::kIQ4_NL:
      return BlockIQ4_NL;
  }
  return nullptr;
}

}  // namespace

void DequantizeStored(DType type, const std::byte* stored, int64_t values, float* out) {
  const DTypeTraits& traits = Traits(type);
  const BlockFn block_fn = BlockOf(type);
  const uint8_t* block = reinterpret_cast<const uint8_t*>(stored);
  for (int64_t i = 0; i < values; i += traits.block_values, block += traits.block_bytes) {
    block_fn(block, out + i);
  }
}

}  // namespace sluice::kernels
