#pragma once

// Where scheduler and runner meet: the plan of one step, and its outcome. Values; engine thread
// only.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"

#include "engine/base/clock.h"
#include "engine/base/ids.h"
#include "engine/request.h"
#include "engine/sampling/sampling_params.h"

namespace sluice::engine {

// The state with which a sequence enters a sampler slot: when it is first planned, and again after
// preemption.
struct SlotReset {
  SlotId slot;
  SamplingParams sampling;
  int32_t sequence_index = 0;
  int32_t min_tokens = 0;
  std::vector<TokenId> banned_until_min;
  std::vector<TokenId> prompt;
  std::vector<TokenId> output;  // tokens generated so far
};

// Asks for the row's token to be sampled from the logits of its last position.
struct RowSampling {
  SlotId slot;
  int32_t position = 0;   // that the sampled token will take
  int32_t logprobs = -1;  // as OutputParams::logprobs
};

// Asks for tokens that are known to be scored: how likely each was, from the logits of the position
// before it.
struct RowScoring {
  SlotId slot;
  int32_t offset = 0;       // of the row's token whose logits score the first of them
  int32_t first_token = 0;  // index into StepPlan::scored
  int32_t num_tokens = 0;
  int32_t logprobs = 0;  // as OutputParams::logprobs
};

// A run of consecutive positions of one sequence. There is no prefill flag: a decode is a row of
// one token.
struct StepRow {
  SequenceId sequence;
  int32_t first_pos = 0;
  int32_t first_token = 0;  // index into StepPlan::tokens
  int32_t num_tokens = 0;
  // The row's single input token is the one sampled for row `from_previous` of the previous step,
  // still being computed when this step was planned; StepPlan::tokens holds -1 in its place.
  std::optional<int32_t> from_previous;
  int32_t first_page = 0;  // index into StepPlan::pages
  int32_t num_pages = 0;   // covers positions [0, first_pos + num_tokens)
  int32_t adapter = 0;
  std::optional<RowScoring> scoring;
  std::optional<RowSampling> sampling;  // absent in all but the last chunk of a prompt
};

// A page whose content another gets before the rows of the step are computed: what a sequence goes
// on from when another one's page is not full.
struct PageCopy {
  PageId from;
  PageId to;
};

struct StepPlan {
  uint64_t step = 0;  // ascending
  std::vector<PageCopy> page_copies;
  std::vector<SlotReset> slot_resets;
  std::vector<StepRow> rows;
  std::vector<TokenId> tokens;  // of all rows
  std::vector<PageId> pages;    // page tables of all rows
  std::vector<TokenId> scored;  // of all rows; their logits come before those that are sampled

  bool empty() const { return rows.empty(); }
  std::span<const TokenId> Tokens(const StepRow& row) const {
    return std::span(tokens).subspan(static_cast<size_t>(row.first_token),
                                     static_cast<size_t>(row.num_tokens));
  }
  std::span<const PageId> Pages(const StepRow& row) const {
    return std::span(pages).subspan(static_cast<size_t>(row.first_page),
                                    static_cast<size_t>(row.num_pages));
  }
};

// What became of one row of a plan.
struct RowResult {
  bool sampled = false;
  bool finite = true;                 // false: its logits were not; the token is meaningless
  TokenLogprobs token;                // logprob and top only when asked for
  std::vector<TokenLogprobs> scores;  // one a token that was to be scored
};

struct StepResult {
  absl::Status status;          // an error takes the engine out of service
  std::vector<RowResult> rows;  // one a row of the plan
  Duration device_time{};
  // How long the device had nothing to do between the step before and this one, by its own clock;
  // none where that is not known.
  std::optional<Duration> idle_before;
};

}  // namespace sluice::engine
