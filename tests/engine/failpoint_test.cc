#include "engine/base/failpoint.h"

#include <chrono>
#include <new>
#include <thread>

#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

TEST(FailpointTest, FailsFromTheFirstPassForSoManyTimes) {
  ASSERT_TRUE(kFailpointsBuilt);
  EXPECT_FALSE(Fails(Failpoint::kRead));
  ASSERT_TRUE(SetFailpoint("read=error@3*2").ok());
  for (const bool fails : {false, false, true, true, false, false}) {
    EXPECT_FALSE(Fails(Failpoint::kWrite));
    EXPECT_EQ(Fails(Failpoint::kRead), fails);
  }
  ASSERT_TRUE(SetFailpoint("read=error").ok());  // passes are counted anew
  EXPECT_TRUE(Fails(Failpoint::kRead));
  ASSERT_TRUE(SetFailpoint("read=off").ok());
  EXPECT_FALSE(Fails(Failpoint::kRead));
}

TEST(FailpointTest, SleepsThrowsAndHangsUntilItIsSetAnew) {
  ASSERT_TRUE(SetFailpoint("runner=sleep:30").ok());
  const auto began = std::chrono::steady_clock::now();
  EXPECT_FALSE(Fails(Failpoint::kRunner));
  EXPECT_GE(std::chrono::steady_clock::now() - began, std::chrono::milliseconds(30));
  ASSERT_TRUE(SetFailpoint("runner=throw").ok());
  EXPECT_THROW(Fails(Failpoint::kRunner), std::bad_alloc);
  ASSERT_TRUE(SetFailpoint("runner=hang").ok());
  std::thread other([] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    EXPECT_TRUE(SetFailpoint("runner=off").ok());
  });
  EXPECT_FALSE(Fails(Failpoint::kRunner));
  other.join();
}

TEST(FailpointTest, RefusesWhatItDoesNotKnow) {
  for (const char* setting :
       {"", "runner", "no such=error", "runner=", "runner=explode",
        "runner=sleep:", "runner=sleep:x", "runner=sleep:99999999", "runner=error@0",
        "runner=error*", "runner=error@1x", "runner=error*2@3", "=error"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(SetFailpoint(setting))) << setting;
  }
  EXPECT_FALSE(Fails(Failpoint::kRunner));
}

}  // namespace
}  // namespace sluice::engine
