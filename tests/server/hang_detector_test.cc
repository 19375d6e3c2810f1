#include "server/hang_detector.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

using std::chrono::milliseconds;

// A thread whose accounts the kernel keeps, looked at as the watcher does.
class HangDetectorTest : public testing::Test {
 protected:
  static constexpr milliseconds kLook{50};

  // `passed` goes by, of which it ran so long and waited so long for a processor in waits that
  // have ended.
  void Look(milliseconds passed, milliseconds ran, milliseconds waited, bool ready) {
    times_.ran += ran;
    times_.waited += waited;
    times_.ready = ready;
    detector_.StandsStill(passed, times_);
  }
  milliseconds Counted() const {
    return std::chrono::duration_cast<milliseconds>(detector_.without_progress());
  }

  HangDetector detector_{milliseconds(200)};
  ThreadTimes times_{milliseconds(1000), milliseconds(300), true};
};

TEST_F(HangDetectorTest, CountsWhatAThreadSleepsOrSpins) {
  for (int i = 0; i < 20; ++i) Look(kLook, milliseconds(0), milliseconds(0), /*ready=*/false);
  EXPECT_EQ(Counted(), milliseconds(1000));
  for (int i = 0; i < 20; ++i) Look(kLook, kLook, milliseconds(0), /*ready=*/true);
  EXPECT_EQ(Counted(), milliseconds(2000));
}

TEST_F(HangDetectorTest, LeavesOutWaitsForAProcessor) {
  Look(kLook, milliseconds(5), milliseconds(45), true);  // the first look knows of no wait
  EXPECT_EQ(Counted(), kLook);
  for (int i = 0; i < 100; ++i) Look(kLook, milliseconds(5), milliseconds(45), true);
  EXPECT_EQ(Counted(), milliseconds(50 + 100 * 5));
}

TEST_F(HangDetectorTest, LeavesOutAWaitThatHasNotEnded) {
  Look(kLook, milliseconds(50), milliseconds(0), true);
  for (int i = 0; i < 400; ++i) Look(kLook, milliseconds(0), milliseconds(0), true);
  EXPECT_EQ(Counted(), kLook);
  // Now the kernel tells of those 20 s, once: they are no credit.
  Look(kLook, milliseconds(40), milliseconds(20'010), true);
  EXPECT_EQ(Counted(), kLook + milliseconds(40));
  Look(kLook, milliseconds(0), milliseconds(0), /*ready=*/false);
  EXPECT_EQ(Counted(), kLook + milliseconds(40) + kLook);
}

// Half of the time is not its own, but what it has is spent without getting on.
TEST_F(HangDetectorTest, FindsAStarvedThreadThatSpins) {
  for (int i = 0; i < 100; ++i) {
    Look(kLook, milliseconds(0), milliseconds(0), true);
    Look(kLook, milliseconds(50), milliseconds(50), true);
  }
  EXPECT_GE(Counted(), milliseconds(100 * 50));
  EXPECT_LE(Counted(), milliseconds(101 * 50));
}

TEST_F(HangDetectorTest, CountsEveryMomentWithoutTheKernelsWord) {
  for (int i = 0; i < 20; ++i) detector_.StandsStill(kLook, std::nullopt);
  EXPECT_EQ(Counted(), milliseconds(1000));
}

TEST_F(HangDetectorTest, CountsLittleOfALookThatCameLate) {
  Look(kLook, milliseconds(0), milliseconds(0), false);
  Look(milliseconds(60'000), milliseconds(0), milliseconds(0), false);  // both were stopped
  EXPECT_EQ(Counted(), milliseconds(250));
}

TEST_F(HangDetectorTest, BeginsAnewWithProgress) {
  for (int i = 0; i < 20; ++i) Look(kLook, milliseconds(0), milliseconds(0), true);
  detector_.Moves();
  EXPECT_EQ(Counted(), milliseconds(0));
  // The wait from before is told now, at a first look, which counts.
  Look(kLook, milliseconds(50), milliseconds(1000), true);
  EXPECT_EQ(Counted(), kLook);
}

TEST(ThreadTimesTest, ReadsAThreadOfThisProcess) {
  EXPECT_FALSE(ReadThreadTimes(0));
  EXPECT_FALSE(ReadThreadTimes(1 << 30));
  const auto before = ReadThreadTimes(gettid());
  if (!before) GTEST_SKIP() << "this kernel keeps no accounts of waits";
  std::optional<ThreadTimes> now;
  EXPECT_TRUE(Eventually([&] {
    now = ReadThreadTimes(gettid());
    return now && now->ran > before->ran;
  }));
  EXPECT_TRUE(now->ready);
  std::atomic<int> id{0};
  std::atomic<bool> ends{false};
  std::thread sleeper([&] {
    const auto begin = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - begin < milliseconds(20)) {
    }
    id.store(gettid());
    id.notify_all();
    ends.wait(false);
  });
  id.wait(0);
  EXPECT_TRUE(Eventually([&] {
    const auto asleep = ReadThreadTimes(id.load());
    return asleep && asleep->ran > engine::Duration{} && !asleep->ready;
  }));
  ends.store(true);
  ends.notify_all();
  sleeper.join();
}

}  // namespace
}  // namespace sluice::server
