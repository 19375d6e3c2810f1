#pragma once

#include <cstdint>
#include <vector>

namespace sluice::kernels::cuda {

// Rows of the graph that serves a step of `num_rows` single tokens: graphs are recorded for few
// numbers of rows, the next one serves, at most `most` (of the workspace); 0 when none does. A
// plain function, so that every machine tests it.
int32_t BucketOf(int64_t num_rows, int64_t most);
// All that BucketOf gives for `most`, ascending.
std::vector<int64_t> BucketsUpTo(int64_t most);

}  // namespace sluice::kernels::cuda
