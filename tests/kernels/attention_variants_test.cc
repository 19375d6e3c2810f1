// Windows and capped scores: against the strict path, and bit for bit whatever the chunk, the
// batch, the threads and the instruction set.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/ops.h"
#include "tests/kernels/attention_fixture.h"

namespace sluice::kernels {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kCap = 3.0f;  // below the scores' standard deviation: it bends most of them

// Decode rows and pieces of prefill around the borders of pages, tiles and splits.
const std::vector<Piece> kRagged = {{0, 0, 1},   {1, 15, 1},   {2, 63, 1},   {3, 64, 1},
                                    {4, 255, 1}, {5, 256, 1},  {6, 1099, 1}, {7, 0, 19},
                                    {8, 57, 9},  {9, 250, 13}, {10, 505, 21}};

const std::vector<Variant> kVariants = {{0.0f, 1},   {kCap, 15},  {0.0f, 16},     {kCap, 17},
                                        {0.0f, 64},  {kCap, 64},  {0.0f, 100},    {0.0f, 256},
                                        {kCap, 257}, {0.0f, 257}, {kCap, 5000},   {50.0f, 0},
                                        {kCap, 0},   {0.0f, 300}, {0.0f, 1 << 30}};

std::string Describe(Variant variant) {
  return "softcap " + std::to_string(variant.softcap) + ", window " +
         std::to_string(variant.window);
}

class AttentionVariantTest : public ::testing::TestWithParam<Heads> {};

TEST_P(AttentionVariantTest, AgreesWithStrictPathOnRaggedBatches) {
  const Heads heads = GetParam();
  const DType type = heads.head_size % 32 == 0 ? DType::kF16 : DType::kF32;
  const Cache cache(heads, type, LengthsOf(kRagged), 7);
  for (const Variant variant : kVariants) {
    const Outcome strict = Attend({Backend::kRef}, heads, cache, kRagged, {}, variant);
    Outcome first;
    for (const Machine& machine : CpuMachines()) {
      SCOPED_TRACE(Describe(variant) + ", " + Name(machine));
      const Outcome outcome = Attend(machine, heads, cache, kRagged, {}, variant);
      ExpectClose(outcome, strict, Tolerance(heads, variant));
      if (first.values.empty()) first = outcome;
      ASSERT_TRUE(SameBits(outcome.values, first.values));
      ASSERT_EQ(outcome.quants, first.quants);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionVariantTest,
                         ::testing::Values(Heads{3, 1, 1}, Heads{2, 2, 7}, Heads{3, 1, 33},
                                           Heads{6, 2, 64}, Heads{7, 1, 80}, Heads{2, 1, 96},
                                           Heads{40, 1, 16}, Heads{2, 1, 128}, Heads{1, 1, 256}),
                         [](const auto& param) {
                           return "H" + std::to_string(param.param.num_heads) + "_G" +
                                  std::to_string(param.param.num_kv_heads) + "_D" +
                                  std::to_string(param.param.head_size);
                         });

// Neutral values and a window beyond the context are no window at all.
TEST(AttentionVariantsTest, WindowsBeyondTheContextChangeNothing) {
  const Heads heads = {6, 2, 64};
  const Cache cache(heads, DType::kF16, LengthsOf(kRagged), 11);
  for (const Machine& machine : CpuMachines()) {
    SCOPED_TRACE(Name(machine));
    const Outcome plain = Attend(machine, heads, cache, kRagged);
    for (const int32_t window : {1100, 1101, 1 << 20, std::numeric_limits<int32_t>::max()}) {
      const Outcome outcome = Attend(machine, heads, cache, kRagged, {}, {0.0f, window});
      ASSERT_TRUE(SameBits(outcome.values, plain.values)) << "window " << window;
    }
    EXPECT_FALSE(
        SameBits(Attend(machine, heads, cache, kRagged, {}, {0.0f, 1099}).values, plain.values));
  }
}

TEST(AttentionVariantsTest, AWindowOfOneIsTheValueItself) {
  const Heads heads = {4, 2, 40};
  const Cache cache(heads, DType::kF32, LengthsOf(kRagged), 5);
  for (const Machine& machine : CpuMachines()) {
    const Outcome outcome = Attend(machine, heads, cache, kRagged, {}, {0.0f, 1});
    int64_t token = 0;
    for (const Piece& piece : kRagged) {
      for (int position = piece.before; position < piece.before + piece.count; ++position) {
        for (int64_t i = 0; i < outcome.cols; ++i) {
          const int64_t in_kv = i / 80 * 40 + i % 40;
          ASSERT_EQ(outcome.row(token)[i], Noise(2, piece.sequence, position, in_kv));
        }
        ++token;
      }
    }
  }
}

// A position's K and V count for exactly the tokens that see it, and whatever is wrong with them
// shows there, capped or not.
TEST(AttentionVariantsTest, NonFiniteValuesShowInTheTokensThatSeeThem) {
  const Heads heads = {3, 1, 64};
  const int before = 440;
  const int count = 90;
  const std::vector<Piece> pieces = {{0, before, count}};
  std::vector<Machine> machines = CpuMachines();
  machines.push_back({Backend::kRef});
  for (const Variant variant :
       {Variant{kCap, 0}, Variant{0.0f, 17}, Variant{kCap, 64}, Variant{0.0f, 100}}) {
    const Cache clean(heads, DType::kF16, LengthsOf(pieces), 3);
    for (const Machine& machine : machines) {
      const Outcome untouched = Attend(machine, heads, clean, pieces, {}, variant);
      for (const int position : {0, 380, 425, 447, 448, 500, 512, 529}) {
        for (const float value : {kNan, kInf, -kInf}) {
          for (const bool in_v : {false, true}) {
            SCOPED_TRACE(Describe(variant) + ", " + Name(machine) + (in_v ? ", V " : ", K ") +
                         std::to_string(position) + " " + std::to_string(value));
            Cache cache(heads, DType::kF16, LengthsOf(pieces), 3);
            cache.Put(0, position, 0, 5, in_v, value);
            const Outcome outcome = Attend(machine, heads, cache, pieces, {}, variant);
            for (int t = 0; t < count; ++t) {
              const int at = before + t;
              const bool sees =
                  position <= at && (variant.window == 0 || position > at - variant.window);
              if (sees) {
                // Of V only one column is touched.
                const bool finite = std::all_of(outcome.row(t), outcome.row(t + 1),
                                                [](float x) { return std::isfinite(x); });
                ASSERT_FALSE(finite) << "token " << t;
              } else {
                ASSERT_EQ(0, std::memcmp(outcome.row(t), untouched.row(t),
                                         static_cast<size_t>(outcome.cols) * sizeof(float)))
                    << "token " << t;
              }
            }
          }
        }
      }
    }
  }
}

TEST(AttentionVariantsTest, BatchedEqualsAlone) {
  const Heads heads = {9, 3, 64};
  const Cache cache(heads, DType::kF16, LengthsOf(kRagged), 11);
  for (const Variant variant : kVariants) {
    for (const Machine& machine : CpuMachines()) {
      SCOPED_TRACE(Describe(variant) + ", " + Name(machine));
      const Outcome together = Attend(machine, heads, cache, kRagged, {}, variant);
      int64_t token = 0;
      for (const Piece& piece : kRagged) {
        SCOPED_TRACE("sequence " + std::to_string(piece.sequence));
        const Outcome alone = Attend(machine, heads, cache, {piece}, {}, variant);
        const std::vector<float> part(together.row(token), together.row(token + piece.count));
        ASSERT_TRUE(SameBits(part, alone.values));
        token += piece.count;
      }
    }
  }
}

// So few queries that splits are units of work of their own (with two threads or more), and windows
// that move on to the next split in the middle of them.
TEST(AttentionVariantsTest, TokensSharedByAnItemMayBeginInDifferentSplits) {
  const Heads heads = {1, 1, 64};
  const std::vector<Piece> pieces = {{0, 766, 6}};
  const Cache cache(heads, DType::kF32, LengthsOf(pieces), 17);
  for (const int32_t window : {2, 4, 256, 257, 258, 512, 513}) {
    const Variant variant = {0.0f, window};
    const Outcome strict = Attend({Backend::kRef}, heads, cache, pieces, {}, variant);
    for (const Machine& machine : CpuMachines()) {
      SCOPED_TRACE(Describe(variant) + ", " + Name(machine));
      const Outcome together = Attend(machine, heads, cache, pieces, {}, variant);
      ExpectClose(together, strict, Tolerance(heads, variant));
      for (int t = 0; t < 6; ++t) {
        const Outcome alone = Attend({}, heads, cache, {{0, 766 + t, 1}}, {}, variant);
        ASSERT_TRUE(SameBits({together.row(t), together.row(t + 1)}, alone.values))
            << "token " << t;
      }
    }
  }
}

TEST(AttentionVariantsTest, ChunkedPrefillEqualsWhole) {
  const int length = 700;
  const Heads heads = {6, 2, 64};
  const Cache cache(heads, DType::kF16, {length}, 13);
  const uint32_t seed = 20250321;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (const Variant variant :
       {Variant{0.0f, 1}, Variant{kCap, 17}, Variant{0.0f, 100}, Variant{kCap, 257}}) {
    const Outcome whole = Attend({}, heads, cache, {{0, 0, length}}, {}, variant);
    for (const Machine& machine : CpuMachines()) {
      SCOPED_TRACE(Describe(variant) + ", " + Name(machine));
      for (int before = 0; before < length;) {
        const int count = std::min<int>(length - before, 1 + static_cast<int>(random() % 90));
        const Outcome chunk = Attend(machine, heads, cache, {{0, before, count}}, {}, variant);
        const std::vector<float> part(whole.row(before), whole.row(before + count));
        ASSERT_TRUE(SameBits(chunk.values, part)) << "chunk of " << count << " at " << before;
        before += count;
      }
    }
  }
}

}  // namespace
}  // namespace sluice::kernels
