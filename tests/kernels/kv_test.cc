#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/core/half.h"
#include "kernels/ops.h"
#include "tests/kernels/attention_fixture.h"

namespace sluice::kernels {
namespace {

TEST(KvTest, ReadsBackWhatPagesHold) {
  for (const DType type : {DType::kF16, DType::kF32}) {
    const Heads heads = {2, 2, 20};
    const Cache cache(heads, type, {40, 37}, 5);
    const std::vector<int32_t> positions = {36, 0, 16, 15};
    for (const bool value : {false, true}) {
      std::vector<float> out(positions.size() * 40);
      ReadKv(cache.layer(), cache.pages(1), positions, value, out.data());
      size_t at = 0;
      for (const int32_t position : positions) {
        for (int64_t i = 0; i < 40; ++i, ++at) {
          const float x = Noise(value ? 2 : 1, 1, position, i);
          EXPECT_EQ(out[at], type == DType::kF32 ? x : HalfToFloat(FloatToHalf(x)));
        }
      }
    }
  }
}

TEST(KvTest, CopiesPagesInEveryLayer) {
  const Heads heads = {2, 2, 20};
  const Cache a(heads, DType::kF16, {16, 16}, 5);
  const Cache b(heads, DType::kF16, {16, 16}, 5);
  Exec exec({});
  const int32_t from = a.pages(0)[0];
  const int32_t to = a.pages(1)[0];
  const KvLayer layers[2] = {a.layer(), b.layer()};
  ASSERT_TRUE(CopyPages(exec, layers, {{from}}, {{to}}).ok());
  const std::vector<int32_t> positions = {0, 7, 15};
  for (const KvLayer& layer : layers) {
    for (const bool value : {false, true}) {
      std::vector<float> source(3 * 40), copy(3 * 40);
      ReadKv(layer, {&from, 1}, positions, value, source.data());
      ReadKv(layer, {&to, 1}, positions, value, copy.data());
      EXPECT_EQ(copy, source);
      EXPECT_EQ(copy[0], HalfToFloat(FloatToHalf(Noise(value ? 2 : 1, 0, 0, 0))));
    }
  }
}

TEST(KvTest, RefusesPagesThatDoNotExist) {
  const Heads heads = {2, 2, 20};
  const Cache cache(heads, DType::kF16, {16}, 5);
  Exec exec({});
  const KvLayer layers[1] = {cache.layer()};
  const int32_t beyond = static_cast<int32_t>(cache.layer().num_pages);
  const std::vector<int32_t> good = {1}, negative = {-1}, large = {beyond}, two = {1, 2};
  EXPECT_EQ(CopyPages(exec, layers, negative, good).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CopyPages(exec, layers, good, large).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CopyPages(exec, layers, two, good).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(CopyPages(exec, layers, good, good).ok());
}

}  // namespace
}  // namespace sluice::kernels
