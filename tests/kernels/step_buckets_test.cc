#include "kernels/cuda/step_buckets.h"

#include <algorithm>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace sluice::kernels::cuda {
namespace {

TEST(StepBucketsTest, HoldTheRowsWithLittlePadding) {
  int32_t last = 0;
  for (int64_t rows = 1; rows <= 256; ++rows) {
    const int32_t bucket = BucketOf(rows, 4096);
    ASSERT_GE(bucket, rows);
    ASSERT_GE(bucket, last) << "more rows, no smaller bucket";
    const double padding = static_cast<double>(bucket - rows) / bucket;
    ASSERT_LE(padding, rows < 13 ? 1.0 / 3 : 0.2) << rows;
    ASSERT_EQ(BucketOf(bucket, 4096), bucket) << "a bucket is its own";
    last = bucket;
  }
  EXPECT_EQ(BucketOf(257, 4096), 0);
}

TEST(StepBucketsTest, StayWithinTheWorkspace) {
  for (int64_t most = 1; most <= 256; ++most) {
    for (int64_t rows = 1; rows <= most; ++rows) {
      ASSERT_EQ(BucketOf(rows, most), std::min<int64_t>(BucketOf(rows, 4096), most));
    }
    ASSERT_EQ(BucketOf(most + 1, most), 0);
  }
}

TEST(StepBucketsTest, AreListed) {
  for (int64_t most = 1; most <= 300; ++most) {
    std::set<int64_t> buckets;
    for (int64_t rows = 1; rows <= most; ++rows) {
      if (const int32_t bucket = BucketOf(rows, most); bucket > 0) buckets.insert(bucket);
    }
    ASSERT_EQ(BucketsUpTo(most), std::vector<int64_t>(buckets.begin(), buckets.end())) << most;
  }
}

}  // namespace
}  // namespace sluice::kernels::cuda
