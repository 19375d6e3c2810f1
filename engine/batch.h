#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"

#include "engine/step_plan.h"
#include "kernels/ops.h"

namespace sluice::engine {

// The flat ragged arrays of one step, made from its plan: what one upload brings to the device.
// Engine thread only.
class Batch {
 public:
  struct Limits {
    int max_tokens = 0;  // T
    int max_rows = 0;    // S, and logit rows R
    int max_pages = 0;   // page-table entries of all rows of a step
  };
  explicit Batch(const Limits& limits);

  // Flattens `plan`. `previous` is the plan of the step before it, whose sampled tokens
  // `FromPrevious` inputs name; may be null when the plan has none. INTERNAL when the plan is
  // beyond the limits or contradicts itself.
  absl::Status Fill(const StepPlan& plan, const StepPlan* previous);

  // The view for ops. `previous_tokens` holds the previous step's sampled tokens by logit row; it
  // is where Sample writes them.
  kernels::BatchView view() const;
  // What to score and to sample, in row order, of a row what it scores first; entry i belongs to
  // logit row i.
  std::span<const kernels::SampleRow> samples() const { return samples_; }
  int32_t* previous_tokens() { return previous_tokens_.data(); }

 private:
  absl::Status AddRow(const StepPlan& plan, const StepRow& row,
                      std::span<const int32_t> previous_logit_rows);

  const Limits limits_;
  std::vector<int32_t> tokens_, positions_, row_begins_, page_begins_, pages_, logit_tokens_,
      adapters_;
  std::vector<int32_t> previous_tokens_;
  std::vector<kernels::SampleRow> samples_;
};

}  // namespace sluice::engine
