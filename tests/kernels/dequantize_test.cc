// DequantizeStored against the golden blocks, and the layouts of weights against DequantizeStored.

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/core/half.h"
#include "kernels/ops.h"
#include "tests/testing/tally.h"

namespace sluice::kernels {
namespace {

constexpr DType kAllTypes[] = {DType::kF32,  DType::kF16,   DType::kBF16, DType::kQ4_0,
                               DType::kQ4_1, DType::kQ5_0,  DType::kQ5_1, DType::kQ8_0,
                               DType::kQ2_K, DType::kQ3_K,  DType::kQ4_K, DType::kQ5_K,
                               DType::kQ6_K, DType::kIQ4_NL};

std::vector<std::byte> ReadGolden(const std::string& name) {
  std::ifstream file(std::string(SLUICE_GOLDEN_DIR) + "/blocks/" + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << name;
  const std::vector<char> chars{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::byte> bytes(chars.size());
  if (!chars.empty()) std::memcpy(bytes.data(), chars.data(), chars.size());
  return bytes;
}

uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

TEST(DequantizeTest, GoldenBlocksOfEveryType) {
  for (DType type : kAllTypes) {
    const std::string name(Name(type));
    SCOPED_TRACE(name);
    const std::vector<std::byte> stored = ReadGolden(name + ".bin");
    const std::vector<std::byte> golden = ReadGolden(name + ".f32");
    const int64_t values = static_cast<int64_t>(golden.size() / sizeof(float));
    ASSERT_GT(values, 0);
    ASSERT_EQ(RowBytes(type, values), static_cast<int64_t>(stored.size()));
    std::vector<float> want(static_cast<size_t>(values));
    std::memcpy(want.data(), golden.data(), golden.size());
    std::vector<float> got(want.size());
    DequantizeStored(type, stored.data(), values, got.data());
    testing::Tally tally({"weight types/" + name}, "golden block values");
    size_t first = got.size();  // that differs
    for (size_t i = got.size(); i-- > 0;) {
      if (!tally.Add(Bits(got[i]) == Bits(want[i]))) first = i;
    }
    EXPECT_EQ(first, got.size()) << "got " << got[first % got.size()] << ", want "
                                 << want[first % got.size()];
  }
}

TEST(DequantizeTest, PackedRowsComeBackBitForBit) {
  for (Backend backend : {Backend::kCpu, Backend::kRef}) {
    for (DType type : kAllTypes) {
      ASSERT_TRUE(SupportsWeight(backend, type)) << Name(type);
      const std::vector<std::byte> stored = ReadGolden(std::string(Name(type)) + ".bin");
      const int64_t block_values = Traits(type).block_values;
      const int64_t all_values =
          static_cast<int64_t>(stored.size()) / Traits(type).block_bytes * block_values;
      for (int64_t cols : {block_values, 2 * block_values, 4 * block_values}) {
        const int64_t rows = all_values / cols;
        for (int64_t num_rows : {int64_t{1}, int64_t{15}, int64_t{16}, rows - 3}) {
          SCOPED_TRACE(std::string(Name(backend)) + " " + std::string(Name(type)) + " [" +
                       std::to_string(num_rows) + ", " + std::to_string(cols) + "]");
          auto weight = AllocateWeight(backend, type, num_rows, cols);
          ASSERT_TRUE(weight.ok()) << weight.status();
          EXPECT_GE(static_cast<int64_t>(weight->storage.size()),
                    PackedBytes(backend, type, num_rows, cols));
          const int64_t first_piece = num_rows > 16 ? 16 : num_rows;
          ASSERT_TRUE(PackWeightRows(*weight, 0, first_piece, stored.data()).ok());
          if (num_rows > first_piece) {
            ASSERT_TRUE(PackWeightRows(*weight, first_piece, num_rows - first_piece,
                                       stored.data() + first_piece * RowBytes(type, cols))
                            .ok());
          }
          std::vector<float> want(static_cast<size_t>(cols));
          std::vector<float> got(want.size());
          for (int64_t row = 0; row < num_rows; ++row) {
            DequantizeStored(type, stored.data() + row * RowBytes(type, cols), cols, want.data());
            ASSERT_TRUE(UnpackWeightRow(*weight, row, got.data()).ok());
            ASSERT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)), 0)
                << "row " << row;
          }
        }
      }
    }
  }
}

TEST(DequantizeTest, UnsupportedTypesAndShapesAreRefused) {
  const auto unsupported = AllocateWeight(Backend::kCuda, DType::kQ6_K, 16, 256);
  EXPECT_EQ(unsupported.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(std::string(unsupported.status().message()).find("Q6_K"), std::string::npos);
  EXPECT_EQ(AllocateWeight(Backend::kCpu, DType::kQ8_0, 16, 33).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(AllocateWeight(Backend::kRef, DType::kQ4_K, 16, 128).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(AllocateWeight(Backend::kCpu, DType::kF32, 0, 32).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// Every half there is, and the floats half-way between neighbours, which go to the even one.
TEST(HalfTest, ConvertsBothWays) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float value = HalfToFloat(half);
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const double fraction = static_cast<double>(bits & 1023);
    if (exponent == 31) {
      EXPECT_EQ(std::isinf(value), (bits & 1023) == 0);
      EXPECT_EQ(std::isnan(value), (bits & 1023) != 0);
      EXPECT_EQ(std::isnan(HalfToFloat(FloatToHalf(value))), (bits & 1023) != 0);
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024.0 + fraction, exponent - 25);
    ASSERT_EQ(value, (bits & 0x8000) != 0 ? -magnitude : magnitude) << bits;
    ASSERT_EQ(FloatToHalf(value), half);
    if ((bits & 0x7fff) == 0x7bff) continue;
    const float next = HalfToFloat(static_cast<uint16_t>(half + 1));
    const float middle = (value + next) / 2;
    const uint16_t even = half % 2 == 0 ? half : static_cast<uint16_t>(half + 1);
    ASSERT_EQ(FloatToHalf(middle), even) << bits;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, value)), half) << bits;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, next)), half + 1) << bits;
  }
  EXPECT_EQ(FloatToHalf(65519.996f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-std::numeric_limits<float>::infinity()), 0xfc00);
}

}  // namespace
}  // namespace sluice::kernels
