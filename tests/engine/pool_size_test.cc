#include "engine/pool_size.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kLargePageBytes = 917'504;  // of a 7B model with four KV heads and f16

// Whatever memory there is, a pool that nobody asked for fits it: page 0 is one of its pages.
TEST(PoolSizeTest, WhatIsChosenFits) {
  for (const int engines : {1, 2, 3}) {
    for (const bool all : {false, true}) {
      for (int64_t bytes = 1000 * kLargePageBytes; bytes < 1040 * kLargePageBytes;
           bytes += kLargePageBytes / 7) {
        EngineOptions options;
        options.num_engines = engines;
        const MemoryOffer offer = {.bytes = bytes, .all_for_kv = all};
        const auto pool = SizePool(options, offer, 32'768, kLargePageBytes);
        ASSERT_TRUE(pool.ok()) << pool.status();
        const int64_t taken = engines * pool->num_pages * kLargePageBytes;
        ASSERT_LE(taken, all ? bytes : bytes / 4 + engines * 129 * kLargePageBytes);
        if (all) ASSERT_GT(taken, bytes - engines * kLargePageBytes) << "and leaves no page unused";
      }
    }
  }
}

TEST(PoolSizeTest, NoMoreThanTheBatchCanUse) {
  EngineOptions options;
  options.max_batch = 3;
  const MemoryOffer offer = {.bytes = int64_t{1} << 40, .all_for_kv = true};
  const auto pool = SizePool(options, offer, 100, kLargePageBytes);
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_EQ(pool->num_pages, 3 * 7 + 1);
  EXPECT_EQ(pool->max_context, 100);
}

TEST(PoolSizeTest, WhatDoesNotFitIsAnErrorWithTheNumbers) {
  EngineOptions options;
  const MemoryOffer offer = {.bytes = 100 * kLargePageBytes,
                             .all_for_kv = true,
                             .facts = "; the device has 1 of 2 bytes free"};
  const auto least = SizePool(options, offer, 32'768, kLargePageBytes);
  EXPECT_TRUE(absl::IsResourceExhausted(least.status())) << least.status();
  EXPECT_THAT(std::string(least.status().message()),
              HasSubstr("KV memory: 1 x 129 pages of 917504 bytes do not fit the 91750400 bytes "
                        "that the weights leave available; the device has 1 of 2 bytes free"));
}

}  // namespace
}  // namespace sluice::engine
