#include "engine/warm_up.h"

#include <numeric>
#include <vector>

#include "engine/base/status.h"

namespace sluice::engine {
namespace {

// Token 0 at `position` of so many rows, all of them with page 1 alone.
absl::Status RunRows(DeviceRunner& runner, int64_t num_rows, int32_t position) {
  const auto count = static_cast<size_t>(num_rows);
  const std::vector<int32_t> zeros(count), positions(count, position), pages(count, 1);
  std::vector<int32_t> rows(count + 1);
  std::iota(rows.begin(), rows.end(), 0);
  return runner.Forward({.num_tokens = num_rows,
                         .num_rows = num_rows,
                         .num_logit_rows = num_rows,
                         .tokens = zeros.data(),
                         .positions = positions.data(),
                         .row_begins = rows.data(),
                         .page_begins = rows.data(),
                         .pages = pages.data(),
                         .logit_tokens = rows.data(),
                         .adapters = zeros.data(),
                         .previous_tokens = nullptr,
                         .num_previous = 0});
}

}  // namespace

absl::Status WarmUp(DeviceRunner& runner) {
  if (!runner.asynchronous()) return absl::OkStatus();
  for (const int64_t num_rows : kernels::RowsOfGraphs(runner.exec())) {
    for (int32_t position = 0; position < kernels::kStepsToGraph; ++position) {
      RETURN_IF_ERROR(RunRows(runner, num_rows, position));
    }
  }
  // The one kernel of a lone row, which is there by now, runs for the first time.
  static_assert(kernels::kStepsToGraph < kernels::kPageTokens);
  RETURN_IF_ERROR(RunRows(runner, 1, kernels::kStepsToGraph));
  return runner.Wait();
}

}  // namespace sluice::engine
