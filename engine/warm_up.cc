#include "engine/warm_up.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

#include "engine/base/status.h"

namespace sluice::engine {
namespace {

// Rows that begin at `position`, all of them with the pages from 1 on: what they overwrite of each
// other nobody asks for. One logit row each, of the last token.
absl::Status RunRows(DeviceRunner& runner, std::span<const int32_t> lengths, int32_t position) {
  std::vector<int32_t> positions, row_begins = {0}, page_begins = {0}, pages, logit_tokens;
  for (const int32_t length : lengths) {
    for (int32_t i = 0; i < length; ++i) positions.push_back(position + i);
    const int32_t num_pages = (position + length - 1) / kernels::kPageTokens + 1;
    for (int32_t page = 1; page <= num_pages; ++page) pages.push_back(page);
    row_begins.push_back(row_begins.back() + length);
    page_begins.push_back(static_cast<int32_t>(pages.size()));
    logit_tokens.push_back(row_begins.back() - 1);
  }
  const std::vector<int32_t> tokens(positions.size()), adapters(lengths.size());
  return runner.Forward({.num_tokens = static_cast<int64_t>(tokens.size()),
                         .num_rows = static_cast<int64_t>(lengths.size()),
                         .num_logit_rows = static_cast<int64_t>(lengths.size()),
                         .tokens = tokens.data(),
                         .positions = positions.data(),
                         .row_begins = row_begins.data(),
                         .page_begins = page_begins.data(),
                         .pages = pages.data(),
                         .logit_tokens = logit_tokens.data(),
                         .adapters = adapters.data(),
                         .previous_tokens = nullptr,
                         .num_previous = 0});
}

// Prompts of the lengths at which products and attention change their kernels, alone and beside a
// row of one token.
absl::Status RunPrompts(DeviceRunner& runner) {
  const kernels::WorkspaceShape& shape = runner.exec().workspace_shape();
  const int64_t pages = std::min(shape.max_pages, runner.kv().num_pages() - 1);
  const auto longest =
      static_cast<int32_t>(std::min(shape.max_tokens, pages * kernels::kPageTokens));
  for (int32_t length = longest; length > 1; length /= 2) {
    RETURN_IF_ERROR(RunRows(runner, {{length}}, 0));
    if (shape.max_rows < 2 || length > 256) continue;
    RETURN_IF_ERROR(RunRows(runner, {{1, length - 1}}, 0));
  }
  return absl::OkStatus();
}

absl::Status RunGraphs(DeviceRunner& runner) {
  static_assert(kernels::kStepsToGraph <= kernels::kPageTokens);
  for (const int64_t rows : kernels::RowsOfGraphs(runner.exec())) {
    const std::vector<int32_t> lengths(static_cast<size_t>(rows), 1);
    for (int32_t position = 0; position < kernels::kStepsToGraph; ++position) {
      RETURN_IF_ERROR(RunRows(runner, lengths, position));
    }
  }
  return absl::OkStatus();
}

// Tokens of the last step: of its first row the best, and one drawn with all that there is; of all
// rows, as prompts that are scored have them, the best and how probable they were.
absl::Status RunSamplers(DeviceRunner& runner) {
  const int32_t slot = 0;
  const std::vector<int32_t> prompt = {0};
  const auto sample = [&](const kernels::SamplerParams& params, int32_t num_rows, int32_t num_top) {
    std::vector<kernels::SampleRow> rows(static_cast<size_t>(num_rows));
    for (int32_t i = 0; i < num_rows; ++i) {
      rows[static_cast<size_t>(i)] = {
          .logit_row = i, .slot = slot, .position = i + 1, .num_top = num_top};
    }
    std::vector<kernels::SampledToken> tokens(rows.size());
    RETURN_IF_ERROR(runner.slots().Reset(slot, params, prompt, {}));
    return runner.Sample(rows, tokens, nullptr);
  };
  kernels::SamplerParams best;
  best.temperature = 0.0f;
  kernels::SamplerParams drawn;
  drawn.top_k = 40;
  drawn.typical_p = drawn.top_p = 0.9f;
  drawn.min_p = 0.01f;
  drawn.repetition_penalty = 1.1f;
  RETURN_IF_ERROR(sample(best, 1, -1));
  RETURN_IF_ERROR(sample(drawn, 1, 1));
  return sample(best, static_cast<int32_t>(runner.num_logit_rows()), 1);
}

}  // namespace

absl::Status WarmUp(DeviceRunner& runner) {
  if (!runner.asynchronous()) return absl::OkStatus();
  RETURN_IF_ERROR(RunPrompts(runner));
  RETURN_IF_ERROR(RunGraphs(runner));
  return RunSamplers(runner);  // which waits for the device
}

}  // namespace sluice::engine
