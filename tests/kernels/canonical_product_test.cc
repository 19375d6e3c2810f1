// The CPU's products bit for bit against the canonical product written out in scalar code, one
// rounding after the other, with scales and quants as extreme as a file can make them.

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/core/half.h"
#include "kernels/cpu/linear.h"
#include "tests/kernels/linear_fixture.h"
#include "tests/testing/tally.h"

namespace sluice::kernels {
namespace {

constexpr int64_t kCols = 512;

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

bool SameBits(float a, float b) { return Bits(a) == Bits(b) || (std::isnan(a) && std::isnan(b)); }

void PutHalf(uint16_t half, std::byte* p) { std::memcpy(p, &half, sizeof(half)); }

// ---------------------------------------------------------------- extreme weights

// Signs, both zeros, the smallest and largest subnormal, the largest half, infinities and a NaN.
constexpr uint16_t kScales[] = {0x1e66, 0x9e66, 0x0000, 0x8000, 0x0001,
                                0x83ff, 0x7bff, 0x7c00, 0xfc00, 0x7e01};
// What the other bytes of a block are filled with; -1: random. 0xff is the largest quant and
// sub-scale of most types, 0x7f and 0x80 are those of Q8_0 and of Q6_K's sub-scales.
constexpr int kFills[] = {-1, 0x00, 0xff, 0x7f, 0x80};

// One row for each fill and scale; where the type has a minimum, one more with the scale as its
// scale too.
StoredMatrix ExtremeMatrix(DType type) {
  const DTypeTraits& traits = Traits(type);
  const ScalePlace place = ScalePlaceOf(type);
  std::mt19937 random(7);
  StoredMatrix matrix{type, 0, kCols, {}, {}, {}, {}};
  std::normal_distribution<float> normal;
  for (int minimum = 0; minimum < (place.minimum < 0 ? 1 : 2); ++minimum) {
    for (const int fill : kFills) {
      for (const uint16_t scale : kScales) {
        for (int64_t block = 0; block < kCols / traits.block_values; ++block) {
          std::vector<std::byte> bytes(static_cast<size_t>(traits.block_bytes));
          for (std::byte& byte : bytes) {
            byte = static_cast<std::byte>(fill < 0 ? static_cast<int>(random() & 255) : fill);
          }
          if (traits.quantized) {
            PutHalf(scale, &bytes[static_cast<size_t>(place.scale)]);
            if (minimum == 0 && place.minimum >= 0) PutHalf(0x2a66, &bytes[place.minimum]);
            if (minimum == 1) PutHalf(scale, &bytes[place.minimum]);
          } else {  // ordinary values with one extreme among them
            const float value = block == 37 ? HalfToFloat(scale) : normal(random);
            const uint16_t half = FloatToHalf(value);
            const size_t size = bytes.size();
            std::memcpy(bytes.data(), reinterpret_cast<const char*>(&value) + 4 - size, size);
            if (type == DType::kF16) PutHalf(half, bytes.data());
          }
          matrix.stored.insert(matrix.stored.end(), bytes.begin(), bytes.end());
        }
        ++matrix.rows;
      }
    }
  }
  matrix.Dequantize();
  return matrix;
}

// ---------------------------------------------------------------- the canonical product

// What a quantised weight says in integers, read through DequantizeStored: with all scales but one
// kind set to one, values are the integers of that kind.
struct Integers {
  int64_t sub_columns = 32;
  std::vector<float> quants;          // [rows, cols]
  std::vector<float> scales, minima;  // [rows, cols / sub_columns]
};

// Bytes of a block that hold sub-scales, and those that make every sub-scale 1 and minimum 0.
struct SubScales {
  size_t begin = 0;
  std::vector<int> ones;
};
SubScales SubScalesOf(DType type) {
  switch (type) {
    case DType::kQ2_K:
      return {0, std::vector<int>(16, 1)};
    case DType::kQ3_K:  // 33 - 32: nibbles 1, high pairs 2
      return {96, {0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0xaa, 0xaa, 0xaa, 0xaa}};
    case DType::kQ4_K:
    case DType::kQ5_K:
      return {4, {1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1}};
    case DType::kQ6_K:
      return {192, std::vector<int>(16, 1)};
    default:
      return {};
  }
}

Integers IntegersOf(const StoredMatrix& matrix) {
  const DTypeTraits& traits = Traits(matrix.type);
  const ScalePlace place = ScalePlaceOf(matrix.type);
  const SubScales subs = SubScalesOf(matrix.type);
  const auto block_bytes = static_cast<size_t>(traits.block_bytes);
  // The values when every block has the halves `scale` and `minimum` and, as asked for, sub-scales
  // of one or quants of all ones.
  const auto values = [&](uint16_t scale, uint16_t minimum, bool one_scales, bool full_quants) {
    std::vector<std::byte> stored = matrix.stored;
    for (size_t at = 0; at < stored.size(); at += block_bytes) {
      std::byte* block = &stored[at];
      for (size_t i = 0; full_quants && i < block_bytes; ++i) {
        if (i < subs.begin || i >= subs.begin + subs.ones.size()) block[i] = std::byte{0xff};
      }
      for (size_t i = 0; one_scales && i < subs.ones.size(); ++i) {
        block[subs.begin + i] = static_cast<std::byte>(subs.ones[i]);
      }
      PutHalf(scale, block + place.scale);
      if (place.minimum >= 0) PutHalf(minimum, block + place.minimum);
    }
    std::vector<float> out(matrix.values.size());
    DequantizeStored(matrix.type, stored.data(), static_cast<int64_t>(out.size()), out.data());
    return out;
  };
  constexpr uint16_t kOne = 0x3c00;
  Integers integers;
  integers.quants = values(kOne, 0, true, false);
  if (traits.block_values == 32) return integers;
  if (matrix.type != DType::kQ4_K && matrix.type != DType::kQ5_K) integers.sub_columns = 16;
  const std::vector<float> full = values(kOne, 0, true, true);
  const std::vector<float> scaled = values(kOne, 0, false, true);
  const std::vector<float> minima = values(0, kOne, false, false);
  for (size_t i = 0; i < full.size(); i += static_cast<size_t>(integers.sub_columns)) {
    integers.scales.push_back(scaled[i] / full[i]);
    integers.minima.push_back(minima[i]);
  }
  return integers;
}

float HalfAt(const StoredMatrix& matrix, int64_t row, int64_t col, int place) {
  const DTypeTraits& traits = Traits(matrix.type);
  const int64_t block = (row * matrix.cols + col) / traits.block_values;
  uint16_t half;
  std::memcpy(&half, &matrix.stored[static_cast<size_t>(block * traits.block_bytes + place)], 2);
  return HalfToFloat(half);
}

// As kernels/cpu/panel_kernels.h documents it.
float CanonicalProduct(const StoredMatrix& matrix, const Integers& integers, int64_t row,
                       const Activation& input, int64_t token) {
  float acc = 0.0f;
  const float* x = input.values + token * matrix.cols;
  if (!Traits(matrix.type).quantized) {
    for (int64_t k = 0; k < matrix.cols; ++k) {
      acc = std::fma(matrix.values[static_cast<size_t>(row * matrix.cols + k)], x[k], acc);
    }
    return acc;
  }
  const ScalePlace place = ScalePlaceOf(matrix.type);
  const int64_t sub = integers.sub_columns;
  for (int64_t begin = 0; begin < matrix.cols; begin += sub) {
    const int16_t* a = input.quants + token * matrix.cols + begin;
    const int64_t a_block = token * (matrix.cols / 32) + begin / 32;
    int64_t products = 0, total = 0;
    for (int64_t k = 0; k < sub; ++k) {
      const auto at = static_cast<size_t>(row * matrix.cols + begin + k);
      products += static_cast<int64_t>(integers.quants[at]) * a[k];
      total += a[k];
    }
    EXPECT_LT(std::abs(products), int64_t{1} << 31);
    const auto at = static_cast<size_t>((row * matrix.cols + begin) / sub);
    float scale = HalfAt(matrix, row, begin, place.scale);
    if (!integers.scales.empty()) scale = scale * integers.scales[at];
    const float a_scale = input.scales[a_block];
    acc = std::fma(static_cast<float>(products), scale * a_scale, acc);
    if (place.minimum < 0) continue;
    float minimum = HalfAt(matrix, row, begin, place.minimum);
    if (!integers.minima.empty()) minimum = minimum * integers.minima[at];
    const float a_sum = sub == 32 ? input.sums[a_block] : a_scale * static_cast<float>(total);
    acc = std::fma(minimum, a_sum, acc);
  }
  return acc;
}

// ---------------------------------------------------------------- the tests

// Rows of ordinary values; of the largest quants, alike and alternating; of zeros; of small values.
std::vector<float> ExtremeInput(int64_t num_tokens) {
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  std::vector<float> values;
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t k = 0; k < kCols; ++k) {
      const float choices[] = {normal(random), 30000.0f, k % 2 == 0 ? -2.0f : 2.0f, 0.0f,
                               1e-25f * normal(random)};
      values.push_back(choices[t % 5]);
    }
  }
  return values;
}

Activation ActivationOf(const std::vector<float>& values) {
  const auto num_tokens = static_cast<int64_t>(values.size()) / kCols;
  auto input = Activation::Allocate(Backend::kCpu, num_tokens, kCols);
  EXPECT_TRUE(input.ok()) << input.status();
  std::memcpy(input->values, values.data(), values.size() * sizeof(float));
  for (int64_t t = 0; t < num_tokens; ++t) {
    const int64_t blocks = kCols / 32;
    cpu::kLinearAvx2.quantize(input->values + t * kCols, kCols, input->quants + t * kCols,
                              input->scales + t * blocks, input->sums + t * blocks);
  }
  return std::move(*input);
}

std::vector<float> ProductOf(const StoredMatrix& matrix, CpuIsa isa, const Activation& input,
                             int64_t num_tokens) {
  Exec::Options options;
  options.backend = Backend::kCpu;
  options.isa = isa;
  const Exec exec(options);
  const PackedWeight weight = matrix.Pack(Backend::kCpu);
  Linear linear;
  linear.weight = &weight;
  const int64_t num_panels = (matrix.rows + 15) / 16;
  std::vector<float> out(static_cast<size_t>(num_tokens * num_panels * 16));
  cpu::ProductOfPanels(cpu::KernelsFor(exec), linear, 0, num_panels, cpu::RowsFrom(input, 0),
                       num_tokens, out.data(), num_panels * 16);
  return out;
}

std::string RowOf(DType type) { return "weight types/" + std::string(Name(type)); }

class CanonicalProductTest : public ::testing::TestWithParam<DType> {};

TEST_P(CanonicalProductTest, ExtremeWeightsBitForBit) {
  constexpr int64_t kTokens = 11;  // tiles of 8, 2 and 1; on AVX2 4, 4, 2 and 1
  const StoredMatrix matrix = ExtremeMatrix(GetParam());
  const Integers integers = Traits(GetParam()).quantized ? IntegersOf(matrix) : Integers{};
  const auto best = DetectCpuIsa();
  ASSERT_TRUE(best.ok()) << best.status();
  const std::vector<float> values = ExtremeInput(kTokens);
  const Activation input = ActivationOf(values);
  std::vector<float> want;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t row = 0; row < matrix.rows; ++row) {
      want.push_back(CanonicalProduct(matrix, integers, row, input, t));
    }
  }
  testing::Tally tally({RowOf(GetParam())}, "canonical products");
  for (CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa == CpuIsa::kAvx512 && *best != CpuIsa::kAvx512) continue;
    for (int64_t num_tokens : {kTokens, int64_t{1}}) {
      const std::vector<float> got = ProductOf(matrix, isa, input, num_tokens);
      const int64_t stride = (matrix.rows + 15) / 16 * 16;
      for (int64_t t = 0; t < num_tokens; ++t) {
        for (int64_t row = 0; row < matrix.rows; ++row) {
          const float is = got[static_cast<size_t>(t * stride + row)];
          const float should = want[static_cast<size_t>(t * matrix.rows + row)];
          ASSERT_TRUE(tally.Add(SameBits(is, should)))
              << Name(isa) << ", token " << t << " of " << num_tokens << ", row " << row << ": got "
              << is << ", want " << should;
        }
      }
    }
  }
}

// The canonical product itself against sums in double, where nothing is infinite.
TEST_P(CanonicalProductTest, ExtremeWeightsNearTheirExactProduct) {
  constexpr int64_t kTokens = 5;
  const StoredMatrix matrix = ExtremeMatrix(GetParam());
  const auto isa = DetectCpuIsa();
  ASSERT_TRUE(isa.ok()) << isa.status();
  const std::vector<float> values = ExtremeInput(kTokens);
  const Activation input = ActivationOf(values);
  const std::vector<float> got = ProductOf(matrix, *isa, input, kTokens);
  const BoundedProduct want = ProductWithBounds(matrix, values);
  testing::Tally tally({RowOf(GetParam())}, "exact products");
  const int64_t stride = (matrix.rows + 15) / 16 * 16;
  int num_finite = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t row = 0; row < matrix.rows; ++row) {
      const auto at = static_cast<size_t>(t * matrix.rows + row);
      const float is = got[static_cast<size_t>(t * stride + row)];
      if (!std::isfinite(want.bounds[at])) {
        EXPECT_FALSE(std::isfinite(is)) << "token " << t << ", row " << row;
        continue;
      }
      ++num_finite;
      // Products below the smallest normal float lose half of its last place each.
      const double bound = want.bounds[at] + kCols * 0x1p-149;
      tally.Add(std::abs(is - want.values[at]) <= bound);
      ASSERT_NEAR(is, want.values[at], bound) << "token " << t << ", row " << row;
    }
  }
  EXPECT_GE(num_finite, kTokens * matrix.rows * 6 / 10);
}

TEST_P(CanonicalProductTest, ExtremeWeightsUnpack) {
  const StoredMatrix matrix = ExtremeMatrix(GetParam());
  const PackedWeight weight = matrix.Pack(Backend::kCpu);
  std::vector<float> row(kCols);
  for (int64_t n = 0; n < matrix.rows; ++n) {
    ASSERT_TRUE(UnpackWeightRow(weight, n, row.data()).ok());
    for (int64_t k = 0; k < kCols; ++k) {
      const float want = matrix.values[static_cast<size_t>(n * kCols + k)];
      ASSERT_TRUE(SameBits(row[static_cast<size_t>(k)], want))
          << "row " << n << ", column " << k << ": got " << row[static_cast<size_t>(k)] << ", want "
          << want;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CanonicalProductTest, ::testing::ValuesIn(kAllTypes),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace sluice::kernels
