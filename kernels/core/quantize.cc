#include "kernels/core/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/core/check.h"
#include "kernels/core/half.h"

namespace sluice::kernels {
namespace {

constexpr int kBlock = 32;

// Where in a block its value of largest magnitude stands; the first of equals.
int LargestAt(const float* block) {
  int largest = 0;
  for (int i = 1; i < kBlock; ++i) {
    if (std::abs(block[i]) > std::abs(block[largest])) largest = i;
  }
  return largest;
}

// 1 / scale, or 0 where there is none: every quant is that of zero then.
float Inverse(float scale) {
  const float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
  return std::isfinite(inverse) ? inverse : 0.0f;
}

// `value` without its fraction, in [0, most]; NaN is 0.
uint8_t Truncated(float value, int most) {
  if (!(value > 0.0f)) return 0;
  return static_cast<uint8_t>(value < static_cast<float>(most) ? static_cast<int>(value) : most);
}

// Stores `value` as a half at `out`; false when it is not finite as one.
bool StoreHalf(float value, std::byte* out) {
  const uint16_t half = FloatToHalf(value);
  std::memcpy(out, &half, sizeof(half));
  return (half & 0x7c00u) != 0x7c00u;
}

// d * q, q in [-127, 127].
bool QuantizeQ8(const float* block, std::byte* out) {
  const float scale = std::abs(block[LargestAt(block)]) / 127.0f;
  const float inverse = Inverse(scale);
  for (int i = 0; i < kBlock; ++i) {
    const float quant = std::clamp(std::round(block[i] * inverse), -127.0f, 127.0f);
    out[2 + i] = static_cast<std::byte>(static_cast<int8_t>(quant));
  }
  return StoreHalf(scale, out);
}

// Quants of 4 or 5 bits: the low four of value i and of value i + 16 in one byte, after them the
// fifth bits, if any, as one word in front.
void StoreQuants(const uint8_t* quants, bool five_bits, std::byte* out) {
  if (five_bits) {
    uint32_t high = 0;
    for (int i = 0; i < kBlock; ++i) high |= uint32_t{quants[i]} >> 4 << i;
    std::memcpy(out, &high, sizeof(high));
    out += sizeof(high);
  }
  for (int i = 0; i < kBlock / 2; ++i) {
    out[i] = static_cast<std::byte>((quants[i] & 15) | (quants[i + kBlock / 2] & 15) << 4);
  }
}

// d * (q - half_range): the value of largest magnitude is that of q = 0, whatever its sign.
bool QuantizeSymmetric(const float* block, int bits, std::byte* out) {
  const int half_range = 1 << (bits - 1);
  const float largest = block[LargestAt(block)];
  // A block of zeros has the scale of +0 whatever the signs of its zeros, as in the reference.
  const float scale = (largest == 0.0f ? 0.0f : largest) / static_cast<float>(-half_range);
  const float inverse = Inverse(scale);
  uint8_t quants[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const float shifted = block[i] * inverse + (static_cast<float>(half_range) + 0.5f);
    quants[i] = Truncated(shifted, 2 * half_range - 1);
  }
  StoreQuants(quants, bits == 5, out + 2);
  return StoreHalf(scale, out);
}

// d * q + minimum.
bool QuantizeFromMinimum(const float* block, int bits, std::byte* out) {
  const int most = (1 << bits) - 1;
  const auto [minimum, maximum] = std::minmax_element(block, block + kBlock);
  const float scale = (*maximum - *minimum) / static_cast<float>(most);
  const float inverse = Inverse(scale);
  uint8_t quants[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    quants[i] = Truncated((block[i] - *minimum) * inverse + 0.5f, most);
  }
  StoreQuants(quants, bits == 5, out + 4);
  const bool scale_fits = StoreHalf(scale, out);
  return StoreHalf(*minimum, out + 2) && scale_fits;
}

bool QuantizeBlock(DType type, const float* block, std::byte* out) {
  switch (type) {
    case DType::kQ8_0:
      return QuantizeQ8(block, out);
    case DType::kQ4_0:
      return QuantizeSymmetric(block, 4, out);
    case DType::kQ5_0:
      return QuantizeSymmetric(block, 5, out);
    case DType::kQ4_1:
      return QuantizeFromMinimum(block, 4, out);
    default:
      return QuantizeFromMinimum(block, 5, out);
  }
}

}  // namespace

bool CanQuantize(DType type) {
  return type == DType::kQ8_0 || type == DType::kQ4_0 || type == DType::kQ4_1 ||
         type == DType::kQ5_0 || type == DType::kQ5_1;
}

int64_t QuantizeBlocks(DType type, const float* values, int64_t count, std::byte* stored) {
  SLUICE_KERNEL_CHECK(CanQuantize(type), "a type that blocks are made of");
  SLUICE_KERNEL_CHECK(count % kBlock == 0, "whole blocks");
  const int block_bytes = Traits(type).block_bytes;
  for (int64_t first = 0; first < count; first += kBlock, stored += block_bytes) {
    const float* const block = values + first;
    for (int i = 0; i < kBlock; ++i) {
      if (!std::isfinite(block[i])) return first + i;
    }
    if (!QuantizeBlock(type, block, stored)) return first + LargestAt(block);
  }
  return count;
}

}  // namespace sluice::kernels
