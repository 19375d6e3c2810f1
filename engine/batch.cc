#include "engine/batch.h"

#include <algorithm>
#include <string>

#include "engine/base/status.h"

namespace sluice::engine {

Batch::Batch(const Limits& limits)
    : limits_(limits), previous_tokens_(static_cast<size_t>(limits.max_rows), -1) {
  const auto max_rows = static_cast<size_t>(limits.max_rows);
  tokens_.reserve(static_cast<size_t>(limits.max_tokens));
  positions_.reserve(static_cast<size_t>(limits.max_tokens));
  row_begins_.reserve(max_rows + 1);
  page_begins_.reserve(max_rows + 1);
  // The limit is what tables that all share pages may name: steps come nowhere near it.
  pages_.reserve(static_cast<size_t>(std::min(limits.max_pages, 1 << 20)));
  logit_tokens_.reserve(max_rows);
  adapters_.reserve(max_rows);
  samples_.reserve(max_rows);
}

absl::Status Batch::Fill(const StepPlan& plan, const StepPlan* previous) {
  if (plan.tokens.size() > static_cast<size_t>(limits_.max_tokens) ||
      plan.rows.size() > static_cast<size_t>(limits_.max_rows) ||
      plan.pages.size() > static_cast<size_t>(limits_.max_pages)) {
    return Internal("step of " + std::to_string(plan.tokens.size()) + " tokens, " +
                    std::to_string(plan.rows.size()) + " rows, " +
                    std::to_string(plan.pages.size()) + " pages exceeds the limits " +
                    std::to_string(limits_.max_tokens) + ", " + std::to_string(limits_.max_rows) +
                    ", " + std::to_string(limits_.max_pages));
  }
  std::vector<int32_t> previous_logit_rows;  // by row of the previous plan, -1: not sampled
  if (previous != nullptr) {
    int32_t next = 0;
    for (const StepRow& row : previous->rows) {
      if (row.scoring) next += row.scoring->num_tokens;
      previous_logit_rows.push_back(row.sampling ? next++ : -1);
    }
  }
  for (std::vector<int32_t>* array : {&tokens_, &positions_, &pages_, &logit_tokens_, &adapters_})
    array->clear();
  samples_.clear();
  row_begins_.assign(1, 0);
  page_begins_.assign(1, 0);
  for (const StepRow& row : plan.rows) RETURN_IF_ERROR(AddRow(plan, row, previous_logit_rows));
  if (samples_.size() > static_cast<size_t>(limits_.max_rows)) {
    return Internal("step of " + std::to_string(samples_.size()) +
                    " rows of logits exceeds the limit " + std::to_string(limits_.max_rows));
  }
  return absl::OkStatus();
}

absl::Status Batch::AddRow(const StepPlan& plan, const StepRow& row,
                           std::span<const int32_t> previous_logit_rows) {
  const auto row_begin = static_cast<int32_t>(tokens_.size());
  if (row.from_previous) {
    const auto source = static_cast<size_t>(*row.from_previous);
    if (row.num_tokens != 1 || source >= previous_logit_rows.size() ||
        previous_logit_rows[source] < 0) {
      return Internal("a row takes its token from row " + std::to_string(source) +
                      " of the previous step, which sampled none");
    }
    tokens_.push_back(~previous_logit_rows[source]);
  } else {
    const std::span<const TokenId> row_tokens = plan.Tokens(row);
    for (TokenId token : row_tokens) {
      if (token < 0) return Internal("a row holds the token id " + std::to_string(token));
    }
    tokens_.insert(tokens_.end(), row_tokens.begin(), row_tokens.end());
  }
  for (int32_t i = 0; i < row.num_tokens; ++i) positions_.push_back(row.first_pos + i);
  for (PageId page : plan.Pages(row)) pages_.push_back(page.value);
  row_begins_.push_back(static_cast<int32_t>(tokens_.size()));
  page_begins_.push_back(static_cast<int32_t>(pages_.size()));
  adapters_.push_back(row.adapter);
  for (int32_t i = 0; row.scoring && i < row.scoring->num_tokens; ++i) {
    const RowScoring& scoring = *row.scoring;
    samples_.push_back({.logit_row = static_cast<int32_t>(logit_tokens_.size()),
                        .slot = scoring.slot.value,
                        .position = row.first_pos + scoring.offset + i + 1,
                        .num_top = scoring.logprobs,
                        .forced_token = plan.scored[static_cast<size_t>(scoring.first_token + i)]});
    logit_tokens_.push_back(row_begin + scoring.offset + i);
  }
  if (row.sampling) {
    samples_.push_back({.logit_row = static_cast<int32_t>(logit_tokens_.size()),
                        .slot = row.sampling->slot.value,
                        .position = row.sampling->position,
                        .num_top = row.sampling->logprobs});
    logit_tokens_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
  }
  return absl::OkStatus();
}

kernels::BatchView Batch::view() const {
  return {.num_tokens = static_cast<int64_t>(tokens_.size()),
          .num_rows = static_cast<int64_t>(adapters_.size()),
          .num_logit_rows = static_cast<int64_t>(logit_tokens_.size()),
          .tokens = tokens_.data(),
          .positions = positions_.data(),
          .row_begins = row_begins_.data(),
          .page_begins = page_begins_.data(),
          .pages = pages_.data(),
          .logit_tokens = logit_tokens_.data(),
          .adapters = adapters_.data(),
          .previous_tokens = previous_tokens_.data(),
          .num_previous = static_cast<int64_t>(previous_tokens_.size())};
}

}  // namespace sluice::engine
