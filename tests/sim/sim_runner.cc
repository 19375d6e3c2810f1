#include "tests/sim/sim_runner.h"

#include <algorithm>
#include <utility>

#include "engine/base/status.h"
#include "tests/sim/fairness.h"

namespace sluice::sim {

using engine::kPageTokens;
using engine::PageId;
using engine::RowResult;
using engine::StepPlan;
using engine::StepResult;
using engine::StepRow;
using engine::TokenId;

SimRunner::SimRunner(const Scenario& scenario, SimulatedClock* clock, Violations* violations,
                     std::function<Call*(uint64_t)> find)
    : scenario_(scenario),
      clock_(clock),
      violations_(violations),
      find_(std::move(find)),
      random_(Mix(scenario.seed, 2)),
      checker_({.depth = scenario.limits.depth,
                .num_pages = scenario.limits.num_pages,
                .max_batch = scenario.limits.max_batch,
                .max_step_tokens = scenario.limits.max_step_tokens}),
      pages_(static_cast<size_t>(scenario.limits.num_pages)),
      named_(static_cast<size_t>(scenario.limits.num_pages)),
      slots_(static_cast<size_t>(scenario.limits.max_batch)) {}

std::string SimRunner::NameOf(const Sequence& sequence) {
  return "call " + std::to_string(sequence.call->handle.value);
}

bool SimRunner::HasEnded(const Sequence& sequence) {
  const Call& call = *sequence.call;
  return call.ended || call.sequences[static_cast<size_t>(sequence.index)].ended;
}

void SimRunner::Violation(const StepPlan& plan, const std::string& what) {
  violations_->Add("device, step " + std::to_string(plan.step) + ": " + what);
}

// A sequence that gets a place has a reset of its slot and one of the plan's last rows, in the same
// order; the reset's seed is the call's handle.
void SimRunner::NoteAdmissions(const StepPlan& plan) {
  const size_t count = plan.slot_resets.size();
  if (count > plan.rows.size()) return Violation(plan, "a slot is set for no row");
  for (size_t i = 0; i < count; ++i) {
    const engine::SlotReset& reset = plan.slot_resets[i];
    const StepRow& row = plan.rows[plan.rows.size() - count + i];
    if (row.sampling && row.sampling->slot != reset.slot)
      return Violation(plan, "a sequence samples in a slot that was set for another");
    Call* call = find_(reset.sampling.seed);
    if (!call) return Violation(plan, "a sequence of no call");
    if (row.sequence.value >= sequences_.size()) sequences_.resize(row.sequence.value + 64);
    Sequence& sequence = sequences_[row.sequence.value];
    const bool first = sequence.call == nullptr;
    if (first) ranks_.insert({-call->priority, row.sequence.value});
    // Those of this plan are not counted yet.
    if (!first || call->passed + static_cast<int>(count) >= Fairness::kMostOvertakings)
      may_be_promoted_.insert(row.sequence.value);
    sequence.call = call;
    sequence.index = reset.sequence_index;
    sequence.next_position = row.first_pos;
    admissions_.push_back({call, reset.sequence_index, first});
    // What was computed before came from a page's border or a copy.
    const bool copied = std::any_of(
        plan.page_copies.begin(), plan.page_copies.end(), [&](const engine::PageCopy& copy) {
          return copy.to == plan.Pages(row)[static_cast<size_t>(row.first_pos / kPageTokens)];
        });
    if (row.first_pos % kPageTokens != 0 && !copied)
      Violation(plan, "a sequence goes on within a page that nobody computed for it");
  }
}

void SimRunner::CheckPagesInFlight(const StepPlan& plan) {
  const uint64_t in_flight = launched_.size() > 1 ? last_launched_ : 0;
  for (const StepRow& row : plan.rows) {
    const std::span<const PageId> pages = plan.Pages(row);
    for (size_t i = static_cast<size_t>(row.first_pos / kPageTokens); i < pages.size(); ++i) {
      const Named& named = named_[static_cast<size_t>(pages[i].value)];
      if (in_flight != 0 && named.step == in_flight && named.sequence != row.sequence.value)
        return Violation(plan, "a page is written that another's row in flight names");
    }
  }
  for (const StepRow& row : plan.rows) {
    for (const PageId id : plan.Pages(row)) {
      Named& named = named_[static_cast<size_t>(id.value)];
      const bool several = named.step == plan.step && named.sequence != row.sequence.value;
      named = {plan.step, several ? 0 : row.sequence.value};
    }
  }
  last_launched_ = plan.step;
}

void SimRunner::CheckFirst(const StepPlan& plan) {
  constexpr int kMostPlans = 8;  // a token in flight, a victim that is held, pages of zombies
  std::optional<uint64_t> id;
  for (auto place = ranks_.begin(); place != ranks_.end() && !id;) {
    const Sequence& sequence = sequences_[place->second];
    if (HasEnded(sequence)) {
      place = ranks_.erase(place);
    } else if (sequence.num_pauses != sequence.call->num_pauses) {
      ++place;
    } else {
      id = place->second;
    }
  }
  std::erase_if(may_be_promoted_, [&](uint64_t other) { return HasEnded(sequences_[other]); });
  if (std::exchange(first_, id) != id) first_runs_ = false;
  if (!id) return;
  const Sequence& first = sequences_[*id];
  const bool has_row = first.planned_in == plan.step;
  // Others' single tokens come before its prompt, and may use the step up.
  const bool full = static_cast<int>(plan.tokens.size()) >= scenario_.limits.max_step_tokens;
  first_runs_ = first_runs_ || has_row;
  // One that gave way to a higher one, which has ended since, waits for its turn.
  const bool excused = may_be_promoted_.size() > may_be_promoted_.count(*id);
  if (excused) first_runs_ = has_row;
  plans_without_first_ = has_row || full || !first_runs_ ? 0 : plans_without_first_ + 1;
  if (plans_without_first_ > kMostPlans)
    Violation(plan, NameOf(first) + " comes first and is not computed");
}

void SimRunner::NoteResume(const Call& call) {
  if (!first_) return;
  const Call& first = *sequences_[*first_].call;
  // The higher one may take the first's place before it has a row itself.
  if (std::pair(-call.priority, call.handle) < std::pair(-first.priority, first.handle))
    first_runs_ = false;
}

void SimRunner::NotePreempted(const StepPlan& plan) {
  if (plan.slot_resets.empty()) return;
  for (const auto& [priority, id] : ranks_) {
    const Sequence& sequence = sequences_[id];
    Call* call = sequence.call;
    if (sequence.planned_in == plan.step || call->n > 1 || call->paused || HasEnded(sequence))
      continue;
    // One that runs is left out when its last token is in flight, or its scores have no room.
    const int most =
        std::min(call->num_prompt + call->stopping.max_tokens, scenario_.limits.max_context);
    const bool scores = !call->scored_prompt.empty() && sequence.planned_end < call->num_prompt;
    if (sequence.planned_end < most - 1 && !scores) preempted_.push_back(call);
  }
}

void SimRunner::Launch(const StepPlan& plan) {
  launched_.push_back(&plan);
  if (static_cast<int>(launched_.size()) > depth() + 1)
    Violation(plan, "more steps in flight than the depth allows");
  checker_.Check(plan, contradictions_);
  if (!contradictions_.empty()) return violations_->Add("plan, " + contradictions_.front());
  CheckPagesInFlight(plan);
  NoteAdmissions(plan);
  if (violations_->any()) return;
  for (const StepRow& row : plan.rows) {
    Sequence* sequence =
        row.sequence.value < sequences_.size() ? &sequences_[row.sequence.value] : nullptr;
    if (!sequence || !sequence->call) return Violation(plan, "a row of a sequence without a slot");
    if (HasEnded(*sequence))
      return Violation(plan, NameOf(*sequence) + " has ended and is computed");
    if (sequence->call->paused)
      return Violation(plan, NameOf(*sequence) + " is paused and is computed");
    sequence->planned_in = plan.step;
    sequence->planned_end = row.first_pos + row.num_tokens;
    sequence->num_pauses = sequence->call->num_pauses;
  }
  CheckFirst(plan);
  NotePreempted(plan);
}

void SimRunner::SetSlots(const StepPlan& plan) {
  for (const engine::SlotReset& reset : plan.slot_resets) {
    Slot& slot = slots_[static_cast<size_t>(reset.slot.value)];
    slot.call = find_(reset.sampling.seed);
    slot.index = reset.sequence_index;
    slot.min_tokens = reset.min_tokens;
    slot.banned = reset.banned_until_min;
    slot.num_output = static_cast<int>(reset.output.size());
    slot.prefix = slot.call->base;
    for (const TokenId token : reset.prompt) slot.prefix = Chain(slot.prefix, token);
    for (const TokenId token : reset.output) slot.prefix = Chain(slot.prefix, token);
  }
}

StepResult SimRunner::Wait(const StepPlan& plan) {
  if (launched_.empty() || launched_.front() != &plan)
    Violation(plan, "waited for another plan than the oldest in flight");
  if (!launched_.empty()) launched_.pop_front();
  // Steps take from half the usual time to half more.
  clock_->Advance(scenario_.step_time / 2 +
                  engine::Duration(random_.Below(scenario_.step_time.count() + 1)));
  clock_->Advance(std::exchange(hang_, engine::Duration{}));
  ++steps_;
  StepResult result;
  if (violations_->any() || (scenario_.fail_at && steps_ >= *scenario_.fail_at)) {
    failed_ = true;
    result.status = engine::Internal("the simulated device failed");
    return result;
  }
  SetSlots(plan);
  for (const engine::PageCopy& copy : plan.page_copies)
    pages_[static_cast<size_t>(copy.to.value)] = pages_[static_cast<size_t>(copy.from.value)];
  sampled_.clear();
  progress_ = false;
  result.rows.reserve(plan.rows.size());
  for (const StepRow& row : plan.rows) {
    result.rows.push_back(RunRow(plan, row));
    const RowResult& last = result.rows.back();
    // A row that samples leaves an id for the row launched behind it even when it has no token.
    sampled_.push_back(!last.sampled ? -1 : last.finite ? last.token.token : 0);
  }
  std::swap(previous_, sampled_);
  rows_ += plan.rows.size();
  steps_without_progress_ = progress_ ? 0 : steps_without_progress_ + 1;
  return result;
}

SimRunner::Page& SimRunner::PageOf(std::span<const PageId> table, int position) {
  const PageId page = table[static_cast<size_t>(position / kPageTokens)];
  return pages_[static_cast<size_t>(page.value)];
}

// All that the row reads must be what its own tokens would have given.
void SimRunner::CheckPrefix(const StepPlan& plan, const StepRow& row, const Sequence& sequence) {
  uint64_t prefix = sequence.call->base;
  const std::span<const PageId> table = plan.Pages(row);
  for (int begin = 0; begin < row.first_pos; begin += kPageTokens) {
    const Page& page = PageOf(table, begin);
    const int used = std::min(kPageTokens, row.first_pos - begin);
    if (page.before != prefix || page.size < used) {
      return Violation(plan, NameOf(sequence) + ": page " + std::to_string(begin / kPageTokens) +
                                 " holds something else");
    }
    prefix = page.prefixes[static_cast<size_t>(used - 1)];
  }
}

RowResult SimRunner::RunRow(const StepPlan& plan, const StepRow& row) {
  Sequence& sequence = sequences_[row.sequence.value];
  const Call& call = *sequence.call;
  if (row.first_pos != sequence.next_position)
    Violation(plan, "positions are left out or computed twice");
  if (!sequence.poisoned) CheckPrefix(plan, row, sequence);
  const std::span<const PageId> table = plan.Pages(row);
  const std::span<const TokenId> tokens = plan.Tokens(row);
  const int end = row.first_pos + row.num_tokens;
  sequence.next_position = end;
  if (end > sequence.high_water) {
    sequence.high_water = end;
    progress_ = true;
  }
  RowResult result;
  result.finite = !scenario_.features.nonfinite || row.sampling ||
                  !IsNonfinite(call.handle.value, sequence.index, end - 1);
  uint64_t prefix = row.first_pos == 0
                        ? call.base
                        : PageOf(table, row.first_pos - 1)
                              .prefixes[static_cast<size_t>((row.first_pos - 1) % kPageTokens)];
  int next_scored = row.scoring ? row.first_pos + row.scoring->offset : end;
  if (row.scoring && next_scored + row.scoring->num_tokens > end)
    Violation(plan, "a token is scored by logits that are not computed");
  for (int position = row.first_pos; position < end; ++position) {
    TokenId token = tokens[static_cast<size_t>(position - row.first_pos)];
    if (row.from_previous) {
      const auto from = static_cast<size_t>(*row.from_previous);
      token = from < previous_.size() ? previous_[from] : -1;
      if (token == -1) Violation(plan, "the row before sampled no token");
    }
    Page& page = PageOf(table, position);
    const auto at = static_cast<size_t>(position % kPageTokens);
    if (at == 0) page.before = prefix;
    prefix = Chain(prefix, token);
    page.prefixes[at] = prefix;
    page.size = static_cast<int>(at) + 1;
    // What the next row finds after this one is of no use.
    if (!result.finite) page.prefixes[at] = prefix ^ 1;
    if (position == next_scored && row.scoring &&
        static_cast<int>(result.scores.size()) < row.scoring->num_tokens) {
      const TokenId scored =
          plan.scored[static_cast<size_t>(row.scoring->first_token) + result.scores.size()];
      result.scores.push_back({scored, Score(prefix, scored), {}});
      ++next_scored;
    }
  }
  if (row.sampling) {
    Sample(plan, row, sequence, prefix, result);
    if (!result.finite)
      PageOf(table, end - 1).prefixes[static_cast<size_t>((end - 1) % kPageTokens)] ^= 1;
  }
  if (!result.finite) {
    sequence.poisoned = true;
    if (!call.sequences[static_cast<size_t>(sequence.index)].ended)
      nonfinite_.push_back(sequence.call);
  }
  return result;
}

void SimRunner::Sample(const StepPlan& plan, const StepRow& row, const Sequence& sequence,
                       uint64_t prefix, RowResult& result) {
  Slot& slot = slots_[static_cast<size_t>(row.sampling->slot.value)];
  const Call& call = *sequence.call;
  if (slot.call != &call || slot.index != sequence.index)
    return Violation(plan, NameOf(sequence) + " samples in another's slot");
  const int position = row.sampling->position;
  // After logits that were not finite the sampler has drawn something that nobody was given.
  if (slot.prefix != prefix && !sequence.poisoned) {
    Violation(plan, NameOf(sequence) + ": the sampler knows other tokens");
  }
  if (slot.num_output != position - call.num_prompt)
    Violation(plan, NameOf(sequence) + ": the sampler counts other tokens");
  result.sampled = true;
  result.finite =
      !scenario_.features.nonfinite || !IsNonfinite(call.handle.value, sequence.index, position);
  if (result.finite) {
    result.token.token = DrawToken(prefix, {.seed = call.handle.value,
                                            .index = sequence.index,
                                            .position = position,
                                            .num_output = slot.num_output,
                                            .min_tokens = slot.min_tokens,
                                            .banned = slot.banned});
    if (row.sampling->logprobs >= 0) {
      result.token.logprob = Score(prefix, result.token.token);
      for (int i = 0; i < row.sampling->logprobs; ++i)
        result.token.top.push_back({i, -static_cast<float>(i)});
    }
  } else {
    result.token.token = -1;  // no token of any vocabulary
  }
  slot.prefix = Chain(prefix, result.finite ? result.token.token : 0);
  ++slot.num_output;
}

}  // namespace sluice::sim
