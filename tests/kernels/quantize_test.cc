// QuantizeBlocks against blocks that are not ours (tests/golden/quantize/make_blocks.py), and the
// error of the way there and back.

#include "kernels/core/quantize.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/ops.h"

namespace sluice::kernels {
namespace {

constexpr int64_t kBlock = 32;
constexpr DType kTypes[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1};

std::vector<char> ReadGolden(const std::string& name) {
  std::ifstream file(std::string(SLUICE_GOLDEN_DIR) + "/quantize/" + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << name;
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::byte> Quantize(DType type, const std::vector<float>& values) {
  const auto count = static_cast<int64_t>(values.size());
  std::vector<std::byte> stored(static_cast<size_t>(RowBytes(type, count)));
  EXPECT_EQ(QuantizeBlocks(type, values.data(), count, stored.data()), count) << Name(type);
  return stored;
}

TEST(QuantizeTest, BlocksAreThoseOfTheReference) {
  const std::vector<char> golden = ReadGolden("values.f32");
  std::vector<float> values(golden.size() / sizeof(float));
  std::memcpy(values.data(), golden.data(), golden.size());
  ASSERT_GT(values.size(), 80u * kBlock);
  for (DType type : kTypes) {
    const std::vector<char> expected = ReadGolden(std::string(Name(type)) + ".bin");
    const std::vector<std::byte> stored = Quantize(type, values);
    ASSERT_EQ(stored.size(), expected.size()) << Name(type);
    const auto block_bytes = static_cast<size_t>(Traits(type).block_bytes);
    for (size_t i = 0; i < stored.size(); ++i) {
      ASSERT_EQ(static_cast<int>(stored[i]), static_cast<unsigned char>(expected[i]))
          << Name(type) << " block " << i / block_bytes << " byte " << i % block_bytes;
    }
  }
}

// A quant is at most half a step from its value; steps are a block's largest magnitude / 127, / 8,
// / 16, or its range / 15, / 31. At one end of the symmetric types it is a whole step: there is no
// quant for the largest magnitude with the other sign. A half rounds scale and minimum by 2^-11.
TEST(QuantizeTest, ValuesComeBackWithinAStep) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> values(256 * kBlock);
  for (float& value : values) value = normal(random);
  for (DType type : kTypes) {
    const std::vector<std::byte> stored = Quantize(type, values);
    std::vector<float> back(values.size());
    DequantizeStored(type, stored.data(), static_cast<int64_t>(values.size()), back.data());
    for (size_t block = 0; block < values.size(); block += kBlock) {
      float largest = 0, low = values[block], high = values[block];
      for (size_t i = block; i < block + kBlock; ++i) {
        largest = std::max(largest, std::abs(values[i]));
        low = std::min(low, values[i]);
        high = std::max(high, values[i]);
      }
      float most = 0;
      if (type == DType::kQ8_0) most = largest / 127 / 2;
      if (type == DType::kQ4_0) most = largest / 8;
      if (type == DType::kQ5_0) most = largest / 16;
      if (type == DType::kQ4_1) most = (high - low) / 15 / 2;
      if (type == DType::kQ5_1) most = (high - low) / 31 / 2;
      const float halves = (largest + (high - low)) * 0x1p-11f;
      for (size_t i = block; i < block + kBlock; ++i) {
        ASSERT_LE(std::abs(back[i] - values[i]), most * 1.001f + halves)
            << Name(type) << " value " << i << ": " << values[i] << " came back as " << back[i];
      }
    }
  }
}

TEST(QuantizeTest, TinyScalesAreZeroAndNeverNotANumber) {
  for (const float value : {0.0f, 1e-45f, -1e-45f, 1e-39f, -1e-38f}) {
    std::vector<float> values(kBlock, 0.0f);
    values[3] = value;
    for (DType type : kTypes) {
      const std::vector<std::byte> stored = Quantize(type, values);
      std::vector<float> back(kBlock);
      DequantizeStored(type, stored.data(), kBlock, back.data());
      for (const float element : back) ASSERT_EQ(element, 0.0f) << Name(type) << " " << value;
    }
  }
}

TEST(QuantizeTest, NamesTheFirstValueThatTheTypeCannotHold) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kHuge = std::numeric_limits<float>::max();
  std::vector<float> good(3 * kBlock, 0.5f);
  for (DType type : kTypes) {
    std::vector<std::byte> stored(static_cast<size_t>(RowBytes(type, 3 * kBlock)));
    for (const float bad : {kInfinity, -kInfinity, kNan, -kNan, kHuge, -kHuge}) {
      for (const int64_t at : {0, 31, 32, 77, 95}) {
        std::vector<float> values = good;
        values[static_cast<size_t>(at)] = bad;
        EXPECT_EQ(QuantizeBlocks(type, values.data(), 3 * kBlock, stored.data()), at)
            << Name(type) << " " << bad;
      }
    }
    std::vector<float> both = good;  // whose range is beyond f32
    both[40] = kHuge;
    both[41] = -kHuge;
    EXPECT_EQ(QuantizeBlocks(type, both.data(), 3 * kBlock, stored.data()), 40) << Name(type);
  }
}

}  // namespace
}  // namespace sluice::kernels
