// Attention on the GPU against the strict path, and bit for bit whatever the batch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/ops.h"
#include "tests/kernels/attention_fixture.h"

namespace sluice::kernels {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr Machine kDevice = {.backend = Backend::kCuda};

// Decode rows at lengths around every border, and pieces of prefill that cross tiles and splits:
// few tokens and many, so that with any ratio of heads there are items and blocks.
const std::vector<Piece> kRagged = {
    {0, 0, 1},     {1, 14, 1},    {2, 15, 1},   {3, 16, 1},   {4, 62, 1},
    {5, 63, 1},    {6, 64, 1},    {7, 254, 1},  {8, 255, 1},  {9, 256, 1},
    {10, 511, 1},  {11, 1099, 1}, {12, 0, 19},  {13, 57, 9},  {14, 250, 13},
    {15, 505, 90}, {16, 767, 2},  {17, 0, 131}, {18, 190, 3},
};

class CudaAttentionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto facts = OpenDevice(0);
    if (!facts.ok()) GTEST_SKIP() << "no CUDA device: " << facts.status();
  }
};

// Error of a softmax average. Scores: the tensor cores round their sum once for each step of 16 and
// each half of q, to 2^-23 of at most |q| |k| scale, here 4/3 sqrt(D); a score's error tilts the
// weights by as much, and values are below 1. Weights are good to 2^-22, sums over 64 keys to a few
// of those.
double TensorTolerance(Heads heads, Variant variant) {
  const double largest_score = 4.0 / 3.0 * std::sqrt(static_cast<double>(heads.head_size));
  const double steps = 2.0 * static_cast<double>((heads.head_size + 15) / 16);
  return 2.0 * 0x1p-23 * (steps + 3.0) * largest_score + Tolerance(heads, variant) + 0x1p-19;
}

struct ShapeParam {
  int64_t head_size;
  int64_t ratio;
  DType type;
};

class CudaAttentionShapeTest : public CudaAttentionTest,
                               public ::testing::WithParamInterface<ShapeParam> {};

TEST_P(CudaAttentionShapeTest, AgreesWithStrictPath) {
  const auto [head_size, ratio, type] = GetParam();
  const int64_t num_kv_heads = ratio > 7 ? 1 : 2;
  const Heads heads = {num_kv_heads * ratio, num_kv_heads, head_size};
  const Cache cache = Cache(heads, DType::kF32, LengthsOf(kRagged), 7).As(type);
  for (const Variant variant : {Variant{}, Variant{0.0f, 100}, Variant{3.0f, 257}}) {
    SCOPED_TRACE("softcap " + std::to_string(variant.softcap) + ", window " +
                 std::to_string(variant.window));
    const Outcome strict =
        Attend({Backend::kRef}, heads, cache.As(DType::kF32), kRagged, {}, variant);
    const Outcome outcome = Attend(kDevice, heads, cache, kRagged, {}, variant);
    ExpectClose(outcome, strict, TensorTolerance(heads, variant));
  }
}

std::vector<ShapeParam> Shapes() {
  std::vector<ShapeParam> shapes;
  for (const int64_t head_size : {64, 80, 96, 128, 256}) {
    for (const int64_t ratio : {1, 3, 7, 40}) shapes.push_back({head_size, ratio, DType::kF16});
  }
  for (const int64_t head_size : {2, 16, 20, 24, 40, 100, 112}) {
    shapes.push_back({head_size, 3, DType::kF16});
  }
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t head_size : {6, 64, 128, 256}) shapes.push_back({head_size, 7, type});
  }
  return shapes;
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaAttentionShapeTest, ::testing::ValuesIn(Shapes()),
                         [](const auto& param) {
                           return "D" + std::to_string(param.param.head_size) + "_Ratio" +
                                  std::to_string(param.param.ratio) + "_" +
                                  std::string(Name(param.param.type));
                         });

struct BitsParam {
  Heads heads;
  DType type;
};

class CudaAttentionBitsTest : public CudaAttentionTest,
                              public ::testing::WithParamInterface<BitsParam> {};

TEST_P(CudaAttentionBitsTest, BatchedEqualsAlone) {
  const auto [heads, type] = GetParam();
  const Cache cache(heads, type, LengthsOf(kRagged), 11);
  for (const Variant variant : {Variant{}, Variant{3.0f, 70}}) {
    const Outcome together = Attend(kDevice, heads, cache, kRagged, {}, variant);
    int64_t token = 0;
    for (const Piece& piece : kRagged) {
      SCOPED_TRACE("sequence " + std::to_string(piece.sequence));
      const Outcome alone = Attend(kDevice, heads, cache, {piece}, {}, variant);
      const std::vector<float> part(together.row(token), together.row(token + piece.count));
      ASSERT_TRUE(SameBits(part, alone.values));
      token += piece.count;
    }
  }
}

TEST_P(CudaAttentionBitsTest, ChunkedPrefillAndDecodeEqualWhole) {
  const auto [heads, type] = GetParam();
  const int length = 620;
  const Cache cache(heads, type, {length}, 13);
  const uint32_t seed = 20261128;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (const Variant variant : {Variant{}, Variant{0.0f, 300}}) {
    const Outcome whole = Attend(kDevice, heads, cache, {{0, 0, length}}, {}, variant);
    for (int before = 0; before < length;) {
      const int most = random() % 2 == 0 ? 4 : 150;
      const int count =
          std::min(length - before, 1 + static_cast<int>(random() % static_cast<uint32_t>(most)));
      const Outcome chunk = Attend(kDevice, heads, cache, {{0, before, count}}, {}, variant);
      const std::vector<float> part(whole.row(before), whole.row(before + count));
      ASSERT_TRUE(SameBits(chunk.values, part)) << "chunk of " << count << " at " << before;
      before += count;
    }
    // All positions of a tile at once, as rows of one token, each of a bucket's.
    for (const int first : {0, 200, 556}) {
      std::vector<Piece> single;
      for (int position = first; position < first + 64; ++position) {
        single.push_back({0, position, 1});
      }
      const Outcome decoded = Attend(kDevice, heads, cache, single, {}, variant);
      const std::vector<float> part(whole.row(first), whole.row(first + 64));
      ASSERT_TRUE(SameBits(decoded.values, part)) << "decoded from " << first;
    }
  }
}

// Later positions hold the largest numbers there are: weights of exactly 0 must hide them.
TEST_P(CudaAttentionBitsTest, WhatAQueryDoesNotSeeDoesNotTouchItsBits) {
  const auto [heads, type] = GetParam();
  const int length = 100;
  Cache cache(heads, type, {length}, 17);
  const Outcome before = Attend(kDevice, heads, cache, {{0, 0, length}});
  for (int position = 70; position < length; ++position) {
    for (int64_t g = 0; g < heads.num_kv_heads; ++g) {
      for (int64_t d = 0; d < heads.head_size; ++d) {
        cache.Put(0, position, g, d, false, d % 2 == 0 ? 60000.0f : -60000.0f);
        cache.Put(0, position, g, d, true, d % 3 == 0 ? 65504.0f : -65504.0f);
      }
    }
  }
  const Outcome after = Attend(kDevice, heads, cache, {{0, 0, length}});
  ASSERT_TRUE(SameBits({before.row(0), before.row(70)}, {after.row(0), after.row(70)}));
  ASSERT_FALSE(SameBits({before.row(70), before.row(71)}, {after.row(70), after.row(71)}));
}

std::string BitsName(const ::testing::TestParamInfo<BitsParam>& info) {
  const Heads& heads = info.param.heads;
  return "H" + std::to_string(heads.num_heads) + "_G" + std::to_string(heads.num_kv_heads) + "_D" +
         std::to_string(heads.head_size) + "_" + std::string(Name(info.param.type));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaAttentionBitsTest,
    ::testing::Values(BitsParam{{14, 2, 64}, DType::kF16}, BitsParam{{9, 3, 64}, DType::kF16},
                      BitsParam{{4, 4, 80}, DType::kF16}, BitsParam{{6, 2, 96}, DType::kF16},
                      BitsParam{{28, 4, 128}, DType::kF16}, BitsParam{{20, 1, 128}, DType::kF16},
                      BitsParam{{4, 2, 256}, DType::kF16}, BitsParam{{4, 2, 24}, DType::kF16},
                      BitsParam{{14, 2, 64}, DType::kF32}, BitsParam{{4, 2, 20}, DType::kF16}),
    BitsName);

TEST_F(CudaAttentionTest, WideBlocksEqualNarrowOnes) {
  const Heads heads = {28, 4, 128};
  const int length = 2048;
  const Cache cache(heads, DType::kF16, {length}, 5);
  for (const Variant variant : {Variant{}, Variant{0.0f, 300}, Variant{3.0f, 70}}) {
    const Outcome whole = Attend(kDevice, heads, cache, {{0, 0, length}}, {}, variant);
    for (const int before : {0, 500, 1900}) {
      const Outcome chunk = Attend(kDevice, heads, cache, {{0, before, 148}}, {}, variant);
      const std::vector<float> part(whole.row(before), whole.row(before + 148));
      ASSERT_TRUE(SameBits(chunk.values, part)) << "chunk at " << before;
    }
  }
}

TEST_F(CudaAttentionTest, ScoresThatAreNotFiniteShowWhereTheyAreSeen) {
  const Heads heads = {3, 1, 64};
  const std::vector<Piece> pieces = {{0, 299, 1}, {1, 90, 40}, {2, 300, 2}};
  const std::vector<int> firsts = {0, 1, 41};
  for (const DType type : {DType::kF16, DType::kF32}) {
    const Cache clean(heads, type, LengthsOf(pieces), 3);
    for (const float softcap : {0.0f, 3.0f}) {
      const Variant variant = {softcap, 0};
      const Outcome untouched = Attend(kDevice, heads, clean, pieces, {}, variant);
      for (const float value : {kNan, kInf, -kInf}) {
        for (const int position : {0, 63, 64, 95, 129}) {
          Cache cache(heads, type, LengthsOf(pieces), 3);
          cache.Put(1, position, 0, 5, false, value);
          const Outcome outcome =
              Attend(kDevice, heads, cache, pieces, {{2, 301, 64 + 9, value}}, variant);
          for (int64_t t = 0; t < 43; ++t) {
            const bool sees = (t >= 1 && t < 41 && t - 1 + 90 >= position) || t == 42;
            for (int64_t i = 0; i < outcome.cols; ++i) {
              const float got = outcome.row(t)[i];
              // Of the poked query only its head.
              const bool nan = sees && (t != 42 || i / 64 == 1);
              if (nan) {
                ASSERT_TRUE(std::isnan(got)) << "token " << t << " column " << i << ": " << got
                                             << " with " << value << " at " << position;
              } else {
                ASSERT_EQ(0, std::memcmp(&got, untouched.row(t) + i, 4)) << "token " << t;
              }
            }
          }
        }
      }
    }
  }
}

TEST_F(CudaAttentionTest, LargeScoresPickTheirValue) {
  const Heads heads = {1, 1, 32};
  const std::vector<Piece> pieces = {{0, 300, 1}};
  Cache cache(heads, DType::kF16, LengthsOf(pieces), 3);
  std::vector<Poke> pokes;
  for (int64_t d = 0; d < 32; ++d) {
    pokes.push_back({0, 300, d, 1000.0f});
    cache.Put(0, 270, 0, d, false, 50.0f);
  }
  const Cache values = cache.As(DType::kF32);
  const Outcome strict = Attend({Backend::kRef}, heads, values, pieces, pokes);
  const Outcome outcome = Attend(kDevice, heads, cache, pieces, pokes);
  for (size_t d = 0; d < 32; ++d) EXPECT_FLOAT_EQ(outcome.values[d], strict.values[d]);
}

}  // namespace
}  // namespace sluice::kernels
