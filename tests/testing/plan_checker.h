#pragma once

#include <cstdint>
#include <string>
#include <unordered_set>
#include <vector>

#include "engine/step_plan.h"

namespace sluice::engine {

// Finds contradictions in plans as a runner receives them, one after the other: more than the
// limits allow, rows that do not fit their tokens and pages, pages that two rows write. Not
// thread-safe.
class PlanChecker {
 public:
  struct Limits {
    int depth = 0;
    int num_pages = 0;  // page 0 included
    int max_batch = 0;
    int max_step_tokens = 0;
  };
  explicit PlanChecker(const Limits& limits);

  // Appends what is wrong with `plan` to `violations`.
  void Check(const StepPlan& plan, std::vector<std::string>& violations);

 private:
  void CheckPages(const StepPlan& plan, std::vector<std::string>& violations);
  void CheckRows(const StepPlan& plan, std::vector<std::string>& violations);
  bool IsPage(PageId page) const { return page.value >= 1 && page.value < limits_.num_pages; }

  // What the plan being looked at says of a page: nothing of an older step.
  struct PageUse {
    uint64_t step = 0;
    int named = 0;
    bool written = false;
  };
  PageUse& UseOf(PageId page, uint64_t step);

  const Limits limits_;
  uint64_t last_step_ = 0;
  uint64_t num_checked_ = 0;
  std::vector<PageUse> pages_;   // by page id
  std::vector<uint64_t> slots_;  // by slot id: the check in which it last sampled
  std::unordered_set<SequenceId> sequences_;
};

}  // namespace sluice::engine
