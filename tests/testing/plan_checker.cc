#include "tests/testing/plan_checker.h"

#include "engine/kv/page_size.h"

namespace sluice::engine {
namespace {

void Violation(const StepPlan& plan, const char* what, std::vector<std::string>& violations) {
  violations.push_back("step " + std::to_string(plan.step) + ": " + what);
}

}  // namespace

PlanChecker::PlanChecker(const Limits& limits)
    : limits_(limits),
      pages_(static_cast<size_t>(limits.num_pages)),
      slots_(static_cast<size_t>(limits.max_batch), 0) {}

PlanChecker::PageUse& PlanChecker::UseOf(PageId page, uint64_t step) {
  PageUse& use = pages_[static_cast<size_t>(page.value)];
  if (use.step != step) use = {step, 0, false};
  return use;
}

void PlanChecker::Check(const StepPlan& plan, std::vector<std::string>& violations) {
  ++num_checked_;
  if (plan.empty()) Violation(plan, "an empty plan was launched", violations);
  if (plan.step <= last_step_) Violation(plan, "steps do not ascend", violations);
  last_step_ = plan.step;
  if (static_cast<int>(plan.tokens.size()) > limits_.max_step_tokens)
    Violation(plan, "more tokens than the budget", violations);
  if (static_cast<int>(plan.rows.size()) > limits_.max_batch)
    Violation(plan, "more rows than slots", violations);
  size_t logits = plan.scored.size();
  for (const StepRow& row : plan.rows) logits += row.sampling.has_value();
  if (logits > static_cast<size_t>(limits_.max_batch))
    Violation(plan, "more rows of logits than slots", violations);
  CheckPages(plan, violations);
  CheckRows(plan, violations);
}

// Any number of rows may read a page, but one that a row writes is that row's alone.
void PlanChecker::CheckPages(const StepPlan& plan, std::vector<std::string>& violations) {
  for (const StepRow& row : plan.rows) {
    const std::span<const PageId> pages = plan.Pages(row);
    for (size_t i = 0; i < pages.size(); ++i) {
      if (!IsPage(pages[i])) {
        Violation(plan, "no such page", violations);
        continue;
      }
      PageUse& use = UseOf(pages[i], num_checked_);
      ++use.named;
      if (static_cast<int>(i) >= row.first_pos / kPageTokens) use.written = true;
      if (use.written && use.named > 1)
        Violation(plan, "a page that is written in two tables", violations);
    }
  }
  for (const PageCopy& copy : plan.page_copies) {
    if (!IsPage(copy.from) || !IsPage(copy.to) || copy.from == copy.to ||
        !UseOf(copy.to, num_checked_).written)
      Violation(plan, "a page is copied that no row goes on in", violations);
  }
}

void PlanChecker::CheckRows(const StepPlan& plan, std::vector<std::string>& violations) {
  sequences_.clear();
  for (const StepRow& row : plan.rows) {
    if (!sequences_.insert(row.sequence).second)
      Violation(plan, "two rows of one sequence", violations);
    if (row.num_tokens < 1) Violation(plan, "a row without tokens", violations);
    if (row.num_pages != PagesFor(row.first_pos + row.num_tokens))
      Violation(plan, "pages do not cover the row's positions", violations);
    for (const TokenId token : plan.Tokens(row)) {
      if ((token == -1) != row.from_previous.has_value())
        Violation(plan, "-1 stands for a token in flight, and only for that", violations);
    }
    if (row.from_previous && (limits_.depth == 0 || row.num_tokens != 1))
      Violation(plan, "a token in flight in a row that cannot have one", violations);
    if (!row.sampling) continue;
    uint64_t& last = slots_[static_cast<size_t>(row.sampling->slot.value)];
    if (last == num_checked_) Violation(plan, "two rows sample in one slot", violations);
    last = num_checked_;
    if (row.sampling->position != row.first_pos + row.num_tokens)
      Violation(plan, "the sampled token takes the position after the row", violations);
  }
}

}  // namespace sluice::engine
