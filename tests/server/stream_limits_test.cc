#include "server/stream_limits.h"

#include <gtest/gtest.h>

#include <chrono>
#include <vector>

namespace sluice::server {
namespace {

using Fault = ConnectionTable::Fault;

constexpr int64_t kAllowed = StreamLimits::kOpenStreams + StreamLimits::kMostExcess;

class StreamLimitsTest : public testing::Test {
 protected:
  // The connections that have to go, by id.
  std::vector<int64_t> Judge(const std::vector<StreamCount>& counts) {
    std::vector<int64_t> ids;
    faults_.clear();
    for (const auto& verdict : limits_.Judge(counts, now_)) {
      ids.push_back(verdict.count.id);
      faults_.push_back(verdict.fault);
    }
    return ids;
  }
  static StreamCount Holding(int64_t id, int64_t held) { return {id, "peer", held + 50, 20, 30}; }
  void Pass(double seconds) {
    now_ += std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
  }

  StreamLimits limits_;
  engine::Time now_{};
  std::vector<Fault> faults_;
};

using Ids = std::vector<int64_t>;

TEST_F(StreamLimitsTest, CutsWhoHoldsMoreThanAConnectionMay) {
  EXPECT_EQ(Judge({Holding(1, kAllowed), Holding(2, 0)}), Ids{});
  EXPECT_EQ(Judge({Holding(1, kAllowed + 1), Holding(2, kAllowed)}), Ids{1});
  EXPECT_EQ(faults_, std::vector{Fault::kHeld});
}

TEST_F(StreamLimitsTest, CutsAConnectionOnce) {
  EXPECT_EQ(Judge({Holding(1, 5000)}), Ids{1});
  // Its streams are cleared away in time, and count for nobody else meanwhile.
  EXPECT_EQ(Judge({Holding(1, 5000), Holding(2, kAllowed)}), Ids{});
  EXPECT_EQ(Judge({Holding(2, kAllowed)}), Ids{});
  EXPECT_EQ(Judge({Holding(3, 5000)}), Ids{3});
}

TEST_F(StreamLimitsTest, CutsThoseWithMostWhenAllTogetherHoldTooMany) {
  std::vector<StreamCount> counts;
  int64_t excess = 0;
  for (int64_t id = 1; excess <= StreamLimits::kMostExcessOfAll; ++id) {
    counts.push_back(Holding(id, kAllowed - 200 + id));
    excess += counts.back().held() - StreamLimits::kOpenStreams;
  }
  // Who has as many open as it may is never one of them.
  for (int64_t id = 100; id < 140; ++id) counts.push_back(Holding(id, StreamLimits::kOpenStreams));
  const auto last = static_cast<int64_t>(counts.size()) - 40;
  EXPECT_EQ(Judge(counts), Ids{last});
}

TEST_F(StreamLimitsTest, CutsWhoBreaksOffTooManyForTooLong) {
  int64_t broken = 0;
  const auto breaks_off = [&](double number) {
    broken += static_cast<int64_t>(number);
    return Judge({{1, "peer", broken, 0, broken}});
  };
  // A burst, then what it may for ever.
  EXPECT_EQ(breaks_off(StreamLimits::kBrokenAtOnce), Ids{});
  for (int i = 0; i < 1000; ++i) {
    Pass(0.1);
    ASSERT_EQ(breaks_off(StreamLimits::kBrokenPerSecond / 10), Ids{}) << i;
  }
  EXPECT_EQ(breaks_off(1), Ids{1});
  EXPECT_EQ(faults_, std::vector{Fault::kBrokenOff});
}

TEST_F(StreamLimitsTest, ARestEarnsOneBurstAndNoMore) {
  const auto burst = static_cast<int64_t>(StreamLimits::kBrokenAtOnce);
  EXPECT_EQ(Judge({{1, "peer", burst, 0, burst}}), Ids{});
  Pass(3600);
  EXPECT_EQ(Judge({{1, "peer", 2 * burst, 0, 2 * burst}}), Ids{});
  EXPECT_EQ(Judge({{1, "peer", 2 * burst + 1, 0, 2 * burst + 1}}), Ids{1});
}

TEST_F(StreamLimitsTest, AnsweredCallsAreAsManyAsOneLikes) {
  for (int64_t calls = 0; calls < 100'000'000; calls += 1'000'000) {
    Pass(0.01);
    ASSERT_EQ(Judge({{1, "peer", calls + 256, calls, 0}}), Ids{});
  }
}

}  // namespace
}  // namespace sluice::server
