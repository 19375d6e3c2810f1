#include "kernels/cuda/step_buckets.h"

#include <algorithm>
#include <iterator>

namespace sluice::kernels::cuda {
namespace {

// At most a third of a step is padding, from 13 rows on a fifth.
constexpr int32_t kBuckets[] = {1,  2,  3,  4,  6,  8,  12,  16,  20,  24,  28,  32,
                                40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256};

}  // namespace

int32_t BucketOf(int64_t num_rows, int64_t most) {
  const int32_t* bucket = std::lower_bound(std::begin(kBuckets), std::end(kBuckets), num_rows);
  if (num_rows > most || bucket == std::end(kBuckets)) return 0;
  return static_cast<int32_t>(std::min<int64_t>(*bucket, most));
}

std::vector<int64_t> BucketsUpTo(int64_t most) {
  std::vector<int64_t> buckets;
  for (const int32_t bucket : kBuckets) {
    if (!buckets.empty() && buckets.back() >= most) break;
    buckets.push_back(std::min<int64_t>(bucket, most));
  }
  return buckets;
}

}  // namespace sluice::kernels::cuda
