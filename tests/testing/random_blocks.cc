#include "tests/testing/random_blocks.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/core/half.h"

namespace sluice::testing {
namespace {

using kernels::DType;

// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }

 private:
  uint64_t state_;
};

// The quantile of the standard normal distribution, 0 < p < 1, by halving.
double NormalQuantile(double p) {
  double low = -6, high = 6;
  for (int i = 0; i < 40; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

uint16_t ToBfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Where a block keeps its scales, and the standard deviation of its levels in steps.
struct BlockLayout {
  int scale = -1;       // f16
  int minimum = -1;     // f16
  int sub_scales = -1;  // of K quants
  int num_levels = 0;
};

BlockLayout LayoutOf(DType type) {
  switch (type) {
    case DType::kQ4_0:
      return {.scale = 0, .num_levels = 16};
    case DType::kQ4_1:
      return {.scale = 0, .minimum = 2, .num_levels = 16};
    case DType::kQ5_0:
      return {.scale = 0, .num_levels = 32};
    case DType::kQ5_1:
      return {.scale = 0, .minimum = 2, .num_levels = 32};
    case DType::kQ8_0:
      return {.scale = 0, .num_levels = 256};
    case DType::kQ4_K:
      return {.scale = 0, .minimum = 2, .sub_scales = 4, .num_levels = 16};
    case DType::kQ5_K:
      return {.scale = 0, .minimum = 2, .sub_scales = 4, .num_levels = 32};
    case DType::kQ6_K:
      return {.scale = 208, .sub_scales = 192, .num_levels = 64};
    case DType::kIQ4_NL:  // sixteen levels, as far from 0 as 234 with steps of one
      return {.scale = 0, .num_levels = 234};
    case DType::kQ2_K:
      return {.scale = 80, .minimum = 82, .sub_scales = 0, .num_levels = 4};
    case DType::kQ3_K:
      return {.scale = 108, .sub_scales = 96, .num_levels = 8};
    default:
      std::fprintf(stderr, "RandomBlocks: not for type %s\n", kernels::Name(type).data());
      std::abort();
  }
}

// Bytes of the packed scales of a block.
size_t SubScaleBytes(DType type) { return type == DType::kQ2_K || type == DType::kQ6_K ? 16 : 12; }

// Sixteen scales of six bits, 32 more than their value, in twelve bytes as Q3_K has them.
void PackOffsetSixBits(const int* scales, std::byte* out) {
  for (int i = 0; i < 8; ++i) {
    const int low = scales[i] + 32, high = scales[i + 8] + 32;
    out[i] = static_cast<std::byte>((low & 15) | (high & 15) << 4);
  }
  for (int i = 0; i < 4; ++i) {
    int upper = 0;
    for (int j = 0; j < 4; ++j) upper |= (scales[i + 4 * j] + 32) >> 4 << (2 * j);
    out[8 + i] = static_cast<std::byte>(upper);
  }
}

// Eight scales of six bits, and minimums equal to them, in twelve bytes as Q4_K and Q5_K have them.
void PackSixBits(const int* scales, std::byte* out) {
  for (int i = 0; i < 4; ++i) {
    const int low = scales[i], high = scales[i + 4];
    out[i] = out[i + 4] = static_cast<std::byte>(low | high >> 4 << 6);
    out[i + 8] = static_cast<std::byte>((high & 15) | (high & 15) << 4);
  }
}

}  // namespace

RandomBlocks::RandomBlocks(DType type, float sigma) : type_(type) {
  if (type == DType::kF16 || type == DType::kBF16) {
    normals_.resize(65536);
    for (size_t i = 0; i < normals_.size(); ++i) {
      const auto value =
          static_cast<float>(sigma * NormalQuantile((static_cast<double>(i) + 0.5) / 65536.0));
      normals_[i] = type == DType::kF16 ? kernels::FloatToHalf(value) : ToBfloat16(value);
    }
    return;
  }
  const BlockLayout layout = LayoutOf(type);
  const double levels = layout.num_levels;
  double step = sigma / std::sqrt((levels * levels - 1) / 12);
  Random random(0x5C41E5);
  double squares = 0;
  for (auto& packed : sub_scales_) {
    int scales[16];
    // Of six bits or more, but for Q2_K's four; Q3_K's are signed.
    const int least = type == DType::kQ2_K ? 8 : type == DType::kQ3_K ? 16 : 32;
    for (int& scale : scales) {
      scale = least + static_cast<int>(random.Next() % static_cast<uint64_t>(least));
      if (type == DType::kQ3_K) scale = std::min(scale, 31);
      squares += scale * scale / 16.0;
    }
    if (type == DType::kQ2_K) {
      for (size_t i = 0; i < 16; ++i) packed[i] = static_cast<std::byte>(scales[i] * 17);
    } else if (type == DType::kQ3_K) {
      PackOffsetSixBits(scales, packed.data());
    } else if (layout.minimum >= 0) {
      PackSixBits(scales, packed.data());
    } else {
      for (size_t i = 0; i < 16; ++i) packed[i] = static_cast<std::byte>(scales[i]);
    }
  }
  if (layout.sub_scales >= 0) step /= std::sqrt(squares / kNumScales);
  const double middle = (levels - 1) / 2;
  for (size_t i = 0; i < kNumScales; ++i) {
    const double scale = step * (0.75 + 0.5 * static_cast<double>(i) / (kNumScales - 1));
    scales_[i] = kernels::FloatToHalf(static_cast<float>(scale));
    // K quants subtract their minimum, the others add it.
    const double sign = layout.sub_scales >= 0 ? 1 : -1;
    minimums_[i] = kernels::FloatToHalf(
        static_cast<float>(sign * middle * static_cast<double>(kernels::HalfToFloat(scales_[i]))));
  }
}

void RandomBlocks::SetScales(uint64_t bits, std::byte* block) const {
  const BlockLayout layout = LayoutOf(type_);
  const size_t index = bits % kNumScales;
  std::memcpy(block + layout.scale, &scales_[index], 2);
  if (layout.sub_scales >= 0) {
    const auto& packed = sub_scales_[bits / kNumScales % kNumScales];
    std::memcpy(block + layout.sub_scales, packed.data(), SubScaleBytes(type_));
  }
  if (layout.minimum >= 0) std::memcpy(block + layout.minimum, &minimums_[index], 2);
}

void RandomBlocks::Fill(uint64_t seed, std::span<std::byte> out) const {
  Random random(seed);
  std::byte* at = out.data();
  std::byte* const end = at + out.size();
  for (; end - at >= 8; at += 8) {
    uint64_t bits = random.Next();
    if (!normals_.empty()) {
      uint64_t values = 0;
      for (int i = 0; i < 4; ++i)
        values |= uint64_t{normals_[bits >> (16 * i) & 65535]} << (16 * i);
      bits = values;
    }
    std::memcpy(at, &bits, 8);
  }
  if (!normals_.empty()) {
    for (; at < end; at += 2) std::memcpy(at, &normals_[random.Next() & 65535], 2);
    return;
  }
  const uint64_t bits = random.Next();
  std::memcpy(at, &bits, static_cast<size_t>(end - at));
  const auto block_bytes = static_cast<size_t>(kernels::Traits(type_).block_bytes);
  for (std::byte* block = out.data(); block < end; block += block_bytes) {
    SetScales(random.Next(), block);
  }
}

}  // namespace sluice::testing
