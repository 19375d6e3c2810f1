#include "tests/testing/fake_runner.h"

#include <algorithm>
#include <utility>

#include "engine/base/status.h"

namespace sluice::engine {
namespace {

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15u + (hash << 6) + (hash >> 2);
  hash *= 0xbf58476d1ce4e5b9u;
  return hash ^ (hash >> 29);
}

uint64_t Prefix(uint64_t before, TokenId token) {
  return Mix(before + 1, static_cast<uint64_t>(token));
}

TokenLogprobs FakeScore(uint64_t prefix, TokenId token, int num_top) {
  TokenLogprobs score;
  score.token = token;
  score.logprob = -static_cast<float>(Prefix(prefix, token) % 1000) / 100.0f;
  for (int i = 0; i < num_top; ++i) score.top.push_back({i, -static_cast<float>(i)});
  return score;
}

uint64_t HashContext(const FakeContext& context) {
  const SamplingParams& sampling = context.slot.sampling;
  uint64_t hash = Mix(sampling.seed, static_cast<uint64_t>(context.slot.sequence_index));
  hash = Mix(hash, static_cast<uint64_t>(sampling.temperature * 1000));
  hash = Mix(hash, static_cast<uint64_t>(context.position));
  for (const TokenId token : context.tokens) hash = Mix(hash, static_cast<uint64_t>(token));
  return hash;
}

}  // namespace

std::vector<TokenLogprobs> FakeScores(std::span<const TokenId> prompt, int num_top) {
  std::vector<TokenLogprobs> scores;
  uint64_t prefix = 0;
  for (size_t i = 0; i + 1 < prompt.size(); ++i) {
    prefix = Prefix(prefix, prompt[i]);
    scores.push_back(FakeScore(prefix, prompt[i + 1], num_top));
  }
  return scores;
}

TokenId FakeSample(const FakeContext& context, int vocab_size) {
  uint64_t hash = HashContext(context);
  const auto& banned = context.slot.banned_until_min;
  const int drawn = context.position - static_cast<int>(context.slot.prompt.size());
  for (uint64_t attempt = 0;; ++attempt) {
    const auto token = static_cast<TokenId>(hash % static_cast<uint64_t>(vocab_size));
    if (drawn >= context.slot.min_tokens || attempt > 1000 ||
        std::find(banned.begin(), banned.end(), token) == banned.end()) {
      return token;
    }
    hash = Mix(hash, attempt);
  }
}

FakeRunner::FakeRunner(Options options)
    : options_(std::move(options)),
      checker_({.depth = options_.depth,
                .num_pages = options_.num_pages,
                .max_batch = options_.max_batch,
                .max_step_tokens = options_.max_step_tokens}),
      pages_(static_cast<size_t>(options_.num_pages)),
      slots_(static_cast<size_t>(options_.max_batch)) {}

void FakeRunner::Violation(const StepPlan& plan, const std::string& what) {
  violations_.push_back("step " + std::to_string(plan.step) + ": " + what);
}

void FakeRunner::Launch(const StepPlan& plan) {
  launched_.push_back(&plan);
  if (static_cast<int>(launched_.size()) > options_.depth + 1)
    Violation(plan, "more steps in flight than the depth allows");
  checker_.Check(plan, violations_);
  max_rows_ = std::max(max_rows_, static_cast<int>(plan.rows.size()));
}

StepResult FakeRunner::Wait(const StepPlan& plan) {
  if (launched_.empty() || launched_.front() != &plan)
    Violation(plan, "waited for another plan than the oldest in flight");
  if (!launched_.empty()) launched_.pop_front();
  if (options_.on_wait) options_.on_wait();
  ++steps_;
  StepResult result;
  result.idle_before = options_.idle_before;
  if (options_.fail_at && steps_ >= *options_.fail_at) {
    result.status = Internal("the fake device failed");
    return result;
  }
  for (const SlotReset& reset : plan.slot_resets) {
    std::optional<Slot>& slot = slots_[static_cast<size_t>(reset.slot.value)];
    slot.emplace(Slot{reset, reset.prompt});
    slot->tokens.insert(slot->tokens.end(), reset.output.begin(), reset.output.end());
  }
  for (const PageCopy& copy : plan.page_copies)
    pages_[static_cast<size_t>(copy.to.value)] = pages_[static_cast<size_t>(copy.from.value)];
  std::vector<TokenId> sampled;
  for (const StepRow& row : plan.rows) {
    result.rows.push_back(RunRow(plan, row));
    const RowResult& last = result.rows.back();
    // As kernels::Sample does: a row that samples leaves an id for the row launched behind it even
    // when it has no token.
    sampled.push_back(!last.sampled ? -1 : last.finite ? last.token.token : 0);
  }
  previous_ = std::move(sampled);
  return result;
}

RowResult FakeRunner::RunRow(const StepPlan& plan, const StepRow& row) {
  // A sequence begins, and begins anew after preemption, on a page's border or in a page that is a
  // copy: what is before must have been computed by others.
  int& next_position = next_positions_[row.sequence];
  const auto first_page = static_cast<size_t>(row.first_pos / 16);
  const bool begins =
      row.first_pos % 16 == 0 ||
      std::any_of(plan.page_copies.begin(), plan.page_copies.end(),
                  [&](const PageCopy& copy) { return copy.to == plan.Pages(row)[first_page]; });
  if (!begins && row.first_pos != next_position)
    Violation(plan, "positions are left out or computed twice");
  next_position = row.first_pos + row.num_tokens;
  const std::span<const PageId> table = plan.Pages(row);
  const auto cell = [&](int position) -> Cell& {
    const PageId page = table[static_cast<size_t>(position / 16)];
    return pages_[static_cast<size_t>(page.value)][static_cast<size_t>(position % 16)];
  };
  for (int i = 0; i < row.num_tokens; ++i) {
    TokenId token = plan.Tokens(row)[static_cast<size_t>(i)];
    if (row.from_previous) {
      const auto from = static_cast<size_t>(*row.from_previous);
      token = from < previous_.size() ? previous_[from] : -1;
      if (token == -1) Violation(plan, "the row before sampled no token");
    }
    const int position = row.first_pos + i;
    cell(position) = {token, Prefix(position == 0 ? 0 : cell(position - 1).prefix, token)};
  }
  tokens_computed_ += row.num_tokens;
  std::vector<TokenLogprobs> scores;
  for (int i = 0; row.scoring && i < row.scoring->num_tokens; ++i) {
    const int position = row.first_pos + row.scoring->offset + i;
    if (position >= row.first_pos + row.num_tokens)
      Violation(plan, "a token is scored by logits that are not computed");
    const TokenId token = plan.scored[static_cast<size_t>(row.scoring->first_token + i)];
    scores.push_back(FakeScore(cell(position).prefix, token, row.scoring->logprobs));
  }
  if (!row.sampling) {
    RowResult result;
    result.scores = std::move(scores);
    return result;
  }
  std::vector<TokenId> context;
  uint64_t prefix = 0;
  for (int position = 0; position < row.first_pos + row.num_tokens; ++position) {
    const Cell& read = cell(position);
    prefix = Prefix(prefix, read.token);
    if (read.prefix != prefix)
      Violation(plan, "position " + std::to_string(position) + " holds something else");
    context.push_back(read.token);
  }
  RowResult result = Sample(plan, row, context);
  result.scores = std::move(scores);
  return result;
}

RowResult FakeRunner::Sample(const StepPlan& plan, const StepRow& row,
                             std::span<const TokenId> context) {
  RowResult result;
  std::optional<Slot>& slot = slots_[static_cast<size_t>(row.sampling->slot.value)];
  if (!slot) {
    Violation(plan, "a slot that was never set");
    return result;
  }
  if (!std::equal(slot->tokens.begin(), slot->tokens.end(), context.begin(), context.end()))
    Violation(plan, "the sampler slot knows other tokens than the pages");
  const FakeContext fake = {context, slot->reset, row.sampling->position};
  result.sampled = true;
  result.finite = !options_.finite || options_.finite(fake);
  if (!result.finite) {
    result.token.token = -1;  // meaningless, and no token of any vocabulary
    slot->tokens.push_back(0);
    return result;
  }
  result.token.token =
      options_.sample ? options_.sample(fake) : FakeSample(fake, options_.vocab_size);
  if (row.sampling->logprobs >= 0) {
    const uint64_t hash = HashContext(fake);
    result.token.logprob = -static_cast<float>(hash % 1000) / 100.0f;
    for (int i = 0; i < row.sampling->logprobs; ++i)
      result.token.top.push_back({i, -static_cast<float>(i)});
  }
  slot->tokens.push_back(result.token.token);
  return result;
}

}  // namespace sluice::engine
