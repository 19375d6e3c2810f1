// The sequences of one request: they share the prompt's pages and differ in nothing else from
// requests of their own.

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/scheduler.h"
#include "tests/engine/scheduling/harness.h"
#include "tests/engine/scheduling/reference.h"

namespace sluice::engine {
namespace {

class SchedulerSiblingsTest : public testing::TestWithParam<std::tuple<int, bool>> {
 protected:
  SchedulerHarness::Options Options() const {
    SchedulerHarness::Options options;
    options.depth = std::get<0>(GetParam());
    options.prefix_cache = std::get<1>(GetParam());
    return options;
  }
};

INSTANTIATE_TEST_SUITE_P(Depth, SchedulerSiblingsTest,
                         testing::Combine(testing::Values(0, 1), testing::Bool()),
                         [](const auto& info) {
                           return "Depth" + std::to_string(std::get<0>(info.param)) +
                                  (std::get<1>(info.param) ? "Cache" : "NoCache");
                         });

Request MakeSiblings(uint64_t handle, int prompt_size, int max_tokens, int n) {
  Request request = MakeRequest(handle, prompt_size, max_tokens, handle);
  request.sampling.n = n;
  return request;
}

void ExpectAsReference(SchedulerHarness& harness, const Request& request) {
  const RequestOutcome& outcome = harness.Outcome(request.handle.value);
  ASSERT_EQ(static_cast<int>(outcome.sequences.size()), request.sampling.n);
  for (const auto& [index, sequence] : outcome.sequences) {
    EXPECT_EQ(sequence.tokens, MakeReference(request, index, FakeTokenizer::Make(), 64, 512).tokens)
        << "sequence " << index;
  }
}

TEST_P(SchedulerSiblingsTest, ThePromptIsComputedOnce) {
  for (const int size : {1, 9, 16, 17, 31, 32, 33, 40}) {
    SCOPED_TRACE(std::to_string(size) + " tokens");
    int copies = 0;
    SchedulerHarness::Options options = Options();
    options.tamper = [&](StepPlan& plan) { copies += static_cast<int>(plan.page_copies.size()); };
    SchedulerHarness harness(options);
    const Request request = MakeSiblings(1, size, 5, 4);
    harness.Submit(request);
    harness.Finish();
    harness.ExpectSound();
    // Whoever finds a full page to share computes the last token of the prompt, the others all.
    const bool shares = size > 16;
    EXPECT_EQ(harness.runner().tokens_computed(), size + 3 * (shares ? 1 : size) + 4 * 4);
    EXPECT_EQ(copies, shares && (size - 1) % 16 != 0 ? 3 : 0);
    EXPECT_EQ(harness.Outcome(1).end->kv.pages_reused, 3 * ((size - 1) / 16));
    EXPECT_EQ(harness.Outcome(1).end->usage.prompt_tokens, size);
    EXPECT_EQ(harness.Outcome(1).end->usage.cached_prompt_tokens, 0);
    EXPECT_EQ(harness.Outcome(1).end->usage.completion_tokens, 20);
    ExpectAsReference(harness, request);
  }
}

TEST_P(SchedulerSiblingsTest, ShareTheirPages) {
  SchedulerHarness harness(Options());
  harness.Submit(MakeSiblings(1, 40, 60, 4));
  for (int i = 0; i < 5; ++i) harness.Step();
  const PagePool& pool = harness.scheduler().pool();
  EXPECT_EQ(pool.total() - pool.num_available(), 2 + 4);
  harness.Finish();
  harness.ExpectSound();
}

// What admission reserves for a call (Request::max_positions) is what it can come to hold, in pages
// that each sequence fills but for its last.
TEST_P(SchedulerSiblingsTest, NeverHoldMoreThanTheirPositions) {
  for (const int size : {1, 16, 17, 32, 40, 100}) {
    SCOPED_TRACE(std::to_string(size) + " tokens");
    SchedulerHarness harness(Options());
    const Request request = MakeSiblings(1, size, 60, 4);
    harness.Submit(request);
    const PagePool& pool = harness.scheduler().pool();
    int most = 0;
    while (harness.Step()) {
      int named = 0;
      for (int page = 1; page <= pool.total(); ++page) named += pool.references(PageId{page}) > 0;
      most = std::max(most, named);
    }
    harness.ExpectSound();
    EXPECT_LE(most * kPageTokens, request.max_positions() + 4 * (kPageTokens - 1));
    EXPECT_GT(most * kPageTokens, request.max_positions() - 4 * kPageTokens);
  }
}

TEST_P(SchedulerSiblingsTest, PreemptedOrNotTheyAreTheSame) {
  for (const int pages : {7, 9, 12, 20}) {
    for (const int budget : {7, 64}) {
      SCOPED_TRACE(std::to_string(pages) + " pages, " + std::to_string(budget) + " tokens a step");
      SchedulerHarness::Options options = Options();
      options.num_pages = pages;
      options.max_step_tokens = budget;
      SchedulerHarness harness(options);
      const std::vector<Request> requests = {MakeSiblings(1, 40, 60, 4), MakeSiblings(2, 20, 50, 3),
                                             MakeSiblings(3, 50, 20, 2)};
      for (const Request& request : requests) harness.Submit(request);
      harness.Finish();
      harness.ExpectSound();
      if (pages < 20) {
        EXPECT_GT(harness.stats().preemptions.load(), 0u);
      }
      for (const Request& request : requests) ExpectAsReference(harness, request);
    }
  }
}

TEST_P(SchedulerSiblingsTest, OthersPassThemWhileTheyWaitForThePrompt) {
  SchedulerHarness::Options options = Options();
  options.max_step_tokens = 16;
  SchedulerHarness harness(options);
  harness.Submit(MakeRequest(1, 4, 60));
  harness.Step();
  harness.Submit(MakeSiblings(2, 90, 5, 3));
  harness.Submit(MakeRequest(3, 4, 4, 3));
  for (int i = 0; i < 8; ++i) harness.Step();
  EXPECT_TRUE(harness.Outcome(3).admitted);
  harness.Finish();
  harness.ExpectSound();
  ExpectAsReference(harness, MakeSiblings(2, 90, 5, 3));
}

TEST_P(SchedulerSiblingsTest, OneCancelEndsThemAll) {
  SchedulerHarness harness(Options());
  harness.Submit(MakeSiblings(1, 40, 60, 4));
  for (int i = 0; i < 6; ++i) harness.Step();
  harness.Cancel(1, Cancelled("gone"));
  harness.Finish();
  harness.ExpectSound();
  EXPECT_EQ(harness.Outcome(1).sequences.size(), 4u);
  for (const auto& [index, sequence] : harness.Outcome(1).sequences)
    EXPECT_EQ(sequence.end->reason, FinishReason::kError);
  EXPECT_TRUE(absl::IsCancelled(harness.Outcome(1).end->status));
}

TEST_P(SchedulerSiblingsTest, TheyEndEachAtItsTime) {
  SchedulerHarness::Options options = Options();
  // Sequence k ends with its k-th token; the first before the others can take its pages.
  options.runner.sample = [](const FakeContext& context) {
    const int drawn = context.position - static_cast<int>(context.slot.prompt.size());
    return drawn == context.slot.sequence_index ? 9 : 8;
  };
  SchedulerHarness harness(options);
  Request request = MakeSiblings(1, 40, 60, 4);
  request.stopping.stop_token_ids = {9};
  harness.Submit(request);
  harness.Finish();
  harness.ExpectSound();
  for (const auto& [index, sequence] : harness.Outcome(1).sequences) {
    EXPECT_EQ(static_cast<int>(sequence.tokens.size()), index + 1);
    EXPECT_EQ(sequence.end->reason, FinishReason::kStop);
  }
  EXPECT_EQ(harness.Outcome(1).end->usage.completion_tokens, 1 + 2 + 3 + 4);
}

// What was preempted computes its prompt again, and the cache may by then have a page of it from
// another request: a sibling that took the pages before they were cached would name a page of the
// cache and not the one before it.
TEST_P(SchedulerSiblingsTest, TakeThePromptOnceItIsCached) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 12;
  options.max_step_tokens = 16;
  SchedulerHarness harness(options);
  const Request siblings = MakeSiblings(1, 33, 21, 2);
  harness.Submit(siblings);
  const auto num_tokens = [&] {
    const auto& sequences = harness.Outcome(1).sequences;
    return sequences.empty() ? 0 : sequences.begin()->second.tokens.size();
  };
  const auto in_flight = static_cast<size_t>(std::get<0>(GetParam()));
  while (num_tokens() < 20 - in_flight) harness.Step();
  // Both give their pages to one that needs them all.
  harness.scheduler().Pause(RequestHandle{1});
  harness.Submit(MakeRequest(2, 190, 1, 2));
  while (!harness.Outcome(2).end) harness.Step();
  EXPECT_GE(harness.stats().preemptions.load(), 2u);
  // The first of them has its prompt again, but not yet all its tokens.
  harness.scheduler().Resume(RequestHandle{1});
  for (int i = 0; i < 3; ++i) harness.Step();
  harness.scheduler().Pause(RequestHandle{1});
  // The other request begins with the same page and ends in the step in which the first of the
  // siblings does.
  Request other = MakeRequest(3, 40, 1, 3);
  std::copy_n(siblings.prompt.begin(), 16, other.prompt.begin());
  other.priority = 1;
  harness.Submit(other);
  for (int i = 0; i < 2; ++i) harness.Step();
  harness.scheduler().Resume(RequestHandle{1});
  harness.Finish();
  harness.ExpectSound();
  ExpectAsReference(harness, siblings);
}

// Control: a copy that is not made must show.
TEST_P(SchedulerSiblingsTest, AMissingCopyIsNoticed) {
  SchedulerHarness::Options options = Options();
  options.tamper = [](StepPlan& plan) { plan.page_copies.clear(); };
  SchedulerHarness harness(options);
  harness.Submit(MakeSiblings(1, 40, 5, 2));
  harness.Finish();
  EXPECT_FALSE(harness.runner().violations().empty());
}

}  // namespace
}  // namespace sluice::engine
