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

// Decode rows at lengths around every border, and pieces of prefill that cross tiles and splits.
const std::vector<Piece> kRagged = {
    {0, 0, 1},   {1, 14, 1},  {2, 15, 1},    {3, 16, 1},    {4, 62, 1},   {5, 63, 1},
    {6, 64, 1},  {7, 254, 1}, {8, 255, 1},   {9, 256, 1},   {10, 511, 1}, {11, 1099, 1},
    {12, 0, 19}, {13, 57, 9}, {14, 250, 13}, {15, 505, 21}, {16, 767, 2},
};

class AttentionShapeTest : public ::testing::TestWithParam<std::tuple<int64_t, int64_t, DType>> {};

TEST_P(AttentionShapeTest, AgreesWithStrictPathOnRaggedBatches) {
  const auto [head_size, ratio, type] = GetParam();
  const int64_t num_kv_heads = head_size <= 64 ? 2 : 1;
  const Heads heads = {num_kv_heads * ratio, num_kv_heads, head_size};
  const Cache cache(heads, type, LengthsOf(kRagged), 7);
  const Outcome strict = Attend({Backend::kRef}, heads, cache, kRagged);
  Outcome first;
  for (const Machine& machine : CpuMachines()) {
    SCOPED_TRACE(Name(machine));
    const Outcome outcome = Attend(machine, heads, cache, kRagged);
    ExpectClose(outcome, strict, Tolerance(heads));
    if (first.values.empty()) first = outcome;
    ASSERT_TRUE(SameBits(outcome.values, first.values));
    ASSERT_EQ(outcome.quants, first.quants);
    ASSERT_TRUE(SameBits(outcome.scales, first.scales));
    ASSERT_TRUE(SameBits(outcome.sums, first.sums));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionShapeTest,
                         ::testing::Combine(::testing::Values(2, 6, 16, 32, 64, 80, 100, 128, 256),
                                            ::testing::Values(1, 3, 7, 40),
                                            ::testing::Values(DType::kF16, DType::kF32)),
                         [](const auto& param) {
                           return "D" + std::to_string(std::get<0>(param.param)) + "_Ratio" +
                                  std::to_string(std::get<1>(param.param)) + "_" +
                                  std::string(kernels::Name(std::get<2>(param.param)));
                         });

TEST(AttentionTest, BatchedEqualsAlone) {
  const Heads heads = {9, 3, 64};
  const Cache cache(heads, DType::kF16, LengthsOf(kRagged), 11);
  for (const Machine& machine : CpuMachines()) {
    SCOPED_TRACE(Name(machine));
    const Outcome together = Attend(machine, heads, cache, kRagged);
    int64_t token = 0;
    for (const Piece& piece : kRagged) {
      SCOPED_TRACE("sequence " + std::to_string(piece.sequence));
      const Outcome alone = Attend(machine, heads, cache, {piece});
      const std::vector<float> part(together.row(token), together.row(token + piece.count));
      ASSERT_TRUE(SameBits(part, alone.values));
      token += piece.count;
    }
  }
}

TEST(AttentionTest, ChunkedPrefillEqualsWhole) {
  const int length = 700;
  const Heads heads = {6, 2, 64};
  const Cache cache(heads, DType::kF16, {length}, 13);
  const Outcome whole = Attend({}, heads, cache, {{0, 0, length}});
  const uint32_t seed = 20240917;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (const Machine& machine : CpuMachines()) {
    SCOPED_TRACE(Name(machine));
    for (int before = 0; before < length;) {
      const int count = std::min<int>(length - before, 1 + static_cast<int>(random() % 90));
      const Outcome chunk = Attend(machine, heads, cache, {{0, before, count}});
      const std::vector<float> part(whole.row(before), whole.row(before + count));
      ASSERT_TRUE(SameBits(chunk.values, part)) << "chunk of " << count << " at " << before;
      before += count;
    }
  }
}

TEST(AttentionTest, PagesMayLieAnywhere) {
  const Heads heads = {4, 2, 80};
  const std::vector<Piece> pieces = {{0, 599, 1}, {1, 40, 30}};
  const Cache cache(heads, DType::kF16, LengthsOf(pieces), 1);
  const Outcome first = Attend({}, heads, cache, pieces);
  for (uint32_t page_seed = 2; page_seed < 6; ++page_seed) {
    const Cache moved(heads, DType::kF16, LengthsOf(pieces), page_seed);
    ASSERT_NE(cache.pages(0), moved.pages(0));
    EXPECT_TRUE(SameBits(Attend({}, heads, moved, pieces).values, first.values));
  }
}

TEST(AttentionTest, NonFiniteValuesShowInTheRowThatSeesThem) {
  const Heads heads = {3, 1, 64};
  const std::vector<Piece> pieces = {{0, 299, 1}, {1, 90, 40}};
  const int64_t num_tokens = 41;
  struct Place {
    char array;
    int position;  // of sequence 1
    float value;
  };
  std::vector<Place> places;
  for (const float value : {kNan, kInf, -kInf}) {
    places.push_back({'q', 100, value});
    for (const int position : {0, 63, 64, 95, 129}) {
      places.push_back({'k', position, value});
      places.push_back({'v', position, value});
    }
  }
  for (const Machine& machine : CpuMachines()) {
    SCOPED_TRACE(Name(machine));
    const Cache clean(heads, DType::kF16, LengthsOf(pieces), 3);
    const Outcome untouched = Attend(machine, heads, clean, pieces);
    for (const Place& place : places) {
      SCOPED_TRACE(std::string(1, place.array) + " " + std::to_string(place.position) + " " +
                   std::to_string(place.value));
      Cache cache(heads, DType::kF16, LengthsOf(pieces), 3);
      std::vector<Poke> pokes;
      if (place.array == 'q') {
        pokes.push_back({1, place.position, 64 + 5, place.value});
      } else {
        cache.Put(1, place.position, 0, 5, place.array == 'v', place.value);
      }
      const Outcome outcome = Attend(machine, heads, cache, pieces, pokes);
      for (int64_t t = 0; t < num_tokens; ++t) {
        const int position = t == 0 ? -1 : static_cast<int>(t) - 1 + 90;
        const bool sees =
            place.array == 'q' ? position == place.position : position >= place.position;
        const bool finite = std::all_of(outcome.row(t), outcome.row(t + 1),
                                        [](float x) { return std::isfinite(x); });
        ASSERT_EQ(finite, t == 0 || !sees) << "token " << t;
        if (finite) {
          ASSERT_EQ(0, std::memcmp(outcome.row(t), untouched.row(t),
                                   static_cast<size_t>(outcome.cols) * sizeof(float)));
          continue;
        }
        const bool shown = std::any_of(outcome.scales.begin() + t * outcome.cols / 32,
                                       outcome.scales.begin() + (t + 1) * outcome.cols / 32,
                                       [](float x) { return std::isnan(x); });
        ASSERT_TRUE(shown) << "the quantised form of token " << t << " hides it";
      }
    }
  }
}

TEST(AttentionTest, LargeScoresStayExact) {
  // Scores of many thousands: without the maximum taken out exp would overflow; with one it must
  // pick the V of the largest score.
  const Heads heads = {1, 1, 32};
  const std::vector<Piece> pieces = {{0, 300, 1}};
  Cache cache(heads, DType::kF32, LengthsOf(pieces), 3);
  std::vector<Poke> pokes;
  for (int64_t d = 0; d < 32; ++d) {
    pokes.push_back({0, 300, d, 1000.0f});
    cache.Put(0, 270, 0, d, false, 50.0f);
  }
  for (const Machine& machine : CpuMachines()) {
    const Outcome outcome = Attend(machine, heads, cache, pieces, pokes);
    for (int64_t d = 0; d < 32; ++d)
      EXPECT_FLOAT_EQ(outcome.values[static_cast<size_t>(d)], Noise(2, 0, 270, d));
  }
}

TEST(AttentionTest, WritesTheQuantisedFormOfItsValues) {
  const Heads heads = {3, 1, 32};
  const std::vector<Piece> pieces = {{0, 30, 12}};
  const Cache cache(heads, DType::kF16, LengthsOf(pieces), 3);
  const Outcome outcome = Attend({}, heads, cache, pieces);
  ASSERT_EQ(outcome.quants.size(), outcome.values.size());
  for (size_t block = 0; block < outcome.scales.size(); ++block) {
    const float* values = outcome.values.data() + block * 32;
    float most = 0.0f;
    for (int i = 0; i < 32; ++i) most = std::max(most, std::abs(values[i]));
    ASSERT_EQ(outcome.scales[block], most / 32767.0f);
    int32_t sum = 0;
    for (int i = 0; i < 32; ++i) {
      const int quant = outcome.quants[block * 32 + static_cast<size_t>(i)];
      ASSERT_EQ(quant, static_cast<int>(std::nearbyint(values[i] * (32767.0f / most))));
      sum += quant;
    }
    ASSERT_EQ(outcome.sums[block], outcome.scales[block] * static_cast<float>(sum));
  }
}

}  // namespace
}  // namespace sluice::kernels
