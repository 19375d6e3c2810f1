#include "engine/stats.h"

#include <numeric>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

using testing::ElementsAre;

TEST(StatHistogramTest, ABoundBelongsToItsBucket) {
  constexpr std::array<double, 2> kBounds = {1, 2};
  StatHistogram histogram(kBounds);
  histogram.Observe(0.5);
  histogram.Observe(1);
  histogram.Observe(1.5, 3);
  histogram.Observe(2.5);
  const StatHistogram::Snapshot snapshot = histogram.Read();
  EXPECT_THAT(snapshot.upper_bounds, ElementsAre(1, 2));
  EXPECT_THAT(snapshot.counts, ElementsAre(2, 3, 1));
  EXPECT_DOUBLE_EQ(snapshot.sum, 0.5 + 1 + 4.5 + 2.5);
}

TEST(StatHistogramTest, BoundsAscendAndSpanTheirRange) {
  const auto latency = LatencyBounds();
  EXPECT_TRUE(std::is_sorted(latency.begin(), latency.end()));
  EXPECT_DOUBLE_EQ(latency.front(), 1e-4);
  EXPECT_DOUBLE_EQ(latency.back(), 60);
  const auto counts = CountBounds();
  EXPECT_TRUE(std::is_sorted(counts.begin(), counts.end()));
  EXPECT_DOUBLE_EQ(counts.back(), 4096);
}

TEST(StatHistogramTest, IsReadWhileItIsWritten) {
  StatHistogram histogram(CountBounds());
  constexpr uint64_t kCount = 100'000;
  std::thread writer([&] {
    for (uint64_t i = 0; i < kCount; ++i) histogram.Observe(3);
  });
  uint64_t last = 0;
  while (last < kCount) {
    const StatHistogram::Snapshot snapshot = histogram.Read();
    const uint64_t count =
        std::accumulate(snapshot.counts.begin(), snapshot.counts.end(), uint64_t{0});
    ASSERT_GE(count, last);
    last = count;
  }
  writer.join();
  EXPECT_DOUBLE_EQ(histogram.Read().sum, 3.0 * kCount);
}

}  // namespace
}  // namespace sluice::engine
