#pragma once

#include <cstdint>
#include <vector>

namespace sluice::kernels::cuda {

// Rows of the graph that serves a step of `num_rows` single tokens: graphs are recorded for few
// numbers of rows, of which one is `most`, if not too many, and the next one serves. 0 when none
// does, and beyond `most`, at least 1, what there is room for. Plain functions, so that every
// machine tests them.
int32_t BucketOf(int64_t num_rows, int64_t most);
// All that BucketOf gives for `most`, ascending.
std::vector<int64_t> BucketsUpTo(int64_t most);

}  // namespace sluice::kernels::cuda
