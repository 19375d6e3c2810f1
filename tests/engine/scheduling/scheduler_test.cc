// How steps are put together: that neighbours, chunks, preemption and depth change no token.

#include "engine/scheduler.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/scheduling/harness.h"

namespace sluice::engine {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::IsEmpty;

class SchedulerTest : public testing::TestWithParam<int> {
 protected:
  SchedulerHarness::Options Options() const {
    SchedulerHarness::Options options;
    options.depth = GetParam();
    return options;
  }
};

INSTANTIATE_TEST_SUITE_P(Depth, SchedulerTest, testing::Values(0, 1),
                         [](const auto& info) { return "Depth" + std::to_string(info.param); });

std::vector<Request> MixedRequests() {
  std::vector<Request> requests;
  for (uint64_t i = 1; i <= 6; ++i) {
    Request request = MakeRequest(i, static_cast<int>(7 * i), static_cast<int>(10 + 9 * i), i);
    request.output.logprobs = 2;
    requests.push_back(std::move(request));
  }
  return requests;
}

void ExpectSame(const SequenceOutcome& a, const SequenceOutcome& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.text, b.text);
  ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
  for (size_t i = 0; i < a.logprobs.size(); ++i) {
    EXPECT_EQ(a.logprobs[i].token, b.logprobs[i].token);
    EXPECT_EQ(a.logprobs[i].logprob, b.logprobs[i].logprob);
    EXPECT_EQ(a.logprobs[i].top.size(), b.logprobs[i].top.size());
  }
}

SequenceOutcome RunAlone(const Request& request) {
  SchedulerHarness harness({});
  harness.Submit(request);
  harness.Finish();
  harness.ExpectSound();
  return harness.Outcome(request.handle.value).only();
}

void ExpectAllAsAlone(SchedulerHarness& harness, const std::vector<Request>& requests) {
  for (const Request& request : requests) {
    SCOPED_TRACE(request.id);
    const RequestOutcome& outcome = harness.Outcome(request.handle.value);
    ASSERT_TRUE(outcome.end);
    EXPECT_TRUE(outcome.end->status.ok()) << outcome.end->status;
    EXPECT_EQ(outcome.end->usage.completion_tokens, request.stopping.max_tokens);
    ExpectSame(outcome.only(), RunAlone(request));
  }
}

TEST_P(SchedulerTest, BatchedEqualsAlone) {
  SchedulerHarness harness(Options());
  const std::vector<Request> requests = MixedRequests();
  for (const Request& request : requests) harness.Submit(request);
  harness.Finish();
  harness.ExpectSound();
  EXPECT_EQ(harness.runner().max_rows(), 6);
  EXPECT_EQ(harness.stats().preemptions.load(), 0u);
  ExpectAllAsAlone(harness, requests);
}

TEST_P(SchedulerTest, ChunkedPrefillEqualsWhole) {
  for (const int budget : {1, 3, 8, 17}) {
    SCOPED_TRACE("budget " + std::to_string(budget));
    SchedulerHarness::Options options = Options();
    options.max_step_tokens = budget;
    SchedulerHarness harness(options);
    const std::vector<Request> requests = MixedRequests();
    for (const Request& request : requests) harness.Submit(request);
    harness.Finish();
    harness.ExpectSound();
    ExpectAllAsAlone(harness, requests);
  }
}

TEST_P(SchedulerTest, PreemptedEqualsNot) {
  for (const int pages : {7, 8, 9}) {  // the largest request needs 7
    SCOPED_TRACE(std::to_string(pages) + " pages");
    SchedulerHarness::Options options = Options();
    options.num_pages = pages;
    SchedulerHarness harness(options);
    const std::vector<Request> requests = MixedRequests();
    for (const Request& request : requests) harness.Submit(request);
    harness.Finish();
    harness.ExpectSound();
    EXPECT_GT(harness.stats().preemptions.load(), 0u);
    // Only what preemption lost is computed twice.
    int64_t expected = static_cast<int64_t>(harness.stats().recomputed_tokens.load());
    EXPECT_GT(expected, 0);
    for (const Request& request : requests)
      expected += static_cast<int64_t>(request.prompt.size()) + request.stopping.max_tokens - 1;
    EXPECT_EQ(harness.runner().tokens_computed(), expected);
    ExpectAllAsAlone(harness, requests);
  }
}

TEST_P(SchedulerTest, AnyPoolSizeServesWhatFitsItAlone) {
  for (const int pages : {1, 2, 3}) {
    SCOPED_TRACE(std::to_string(pages) + " pages");
    SchedulerHarness::Options options = Options();
    options.num_pages = pages;
    SchedulerHarness harness(options);
    std::vector<Request> requests;
    for (uint64_t i = 1; i <= 5; ++i) {
      const int prompt = static_cast<int>(3 * i);
      requests.push_back(MakeRequest(i, prompt, 16 * pages + 1 - prompt, i));
    }
    for (const Request& request : requests) harness.Submit(request);
    harness.Finish();
    harness.ExpectSound();
    ExpectAllAsAlone(harness, requests);
  }
}

TEST_P(SchedulerTest, PreemptsNewestWhenPagesRunOut) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 6;
  SchedulerHarness harness(options);
  for (uint64_t i = 1; i <= 3; ++i) {
    Request request = MakeRequest(i, 10, 30, i);
    request.output.report_progress = true;
    harness.Submit(request);
  }
  harness.Finish();
  harness.ExpectSound();
  EXPECT_EQ(harness.Outcome(1).end->kv.preemptions, 0);
  EXPECT_EQ(harness.Outcome(2).end->kv.preemptions, 0);
  EXPECT_EQ(harness.Outcome(3).end->kv.preemptions, 1);
  EXPECT_GT(harness.Outcome(3).end->kv.recomputed_tokens, 0);
  EXPECT_EQ(harness.Outcome(3).only().preemptions, 1);
}

TEST_P(SchedulerTest, TheOlderSequenceWaitsOneStepAtMostForAPage) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 4;
  SchedulerHarness harness(options);
  // When the older one wants its third page, the newer one is in the middle of its second.
  harness.Submit(MakeRequest(1, 10, 50));
  harness.Submit(MakeRequest(2, 5, 40));
  harness.Finish();
  harness.ExpectSound();
  EXPECT_EQ(harness.Outcome(1).end->kv.preemptions, 0);
  EXPECT_EQ(harness.Outcome(2).end->kv.preemptions, 1);
  EXPECT_LT(harness.Outcome(1).end->timing.max_inter_token_seconds, 0.0011 + GetParam() * 0.001);
}

TEST_P(SchedulerTest, DecodesGoOnWhileAPromptIsPrefilled) {
  SchedulerHarness::Options options = Options();
  options.max_step_tokens = 8;
  SchedulerHarness harness(options);
  harness.Submit(MakeRequest(1, 4, 60));
  for (int i = 0; i < 4; ++i) harness.Step();
  const size_t before = harness.Outcome(1).only().tokens.size();
  harness.Submit(MakeRequest(2, 70, 5));  // ten chunks of seven
  for (int i = 0; i < 10; ++i) harness.Step();
  EXPECT_EQ(harness.Outcome(1).only().tokens.size(), before + 10);
  harness.Finish();
  harness.ExpectSound();
}

TEST_P(SchedulerTest, NobodyOvertakesALargePromptInTheQueue) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 8;
  SchedulerHarness harness(options);
  harness.Submit(MakeRequest(1, 16, 30));
  harness.Step();
  harness.Submit(MakeRequest(2, 110, 5));  // 7 pages: has to wait for request 1
  for (uint64_t i = 3; i < 10; ++i) harness.Submit(MakeRequest(i, 4, 4));
  while (!harness.Outcome(2).admitted) {
    ASSERT_TRUE(harness.Step());
    for (uint64_t i = 3; i < 10; ++i) ASSERT_FALSE(harness.Outcome(i).admitted);
  }
  harness.Finish();
  harness.ExpectSound();
}

TEST_P(SchedulerTest, HigherPrioritiesLeaveTheQueueFirst) {
  SchedulerHarness::Options options = Options();
  options.max_batch = 1;
  SchedulerHarness harness(options);
  std::vector<Request> requests;
  for (uint64_t i = 1; i <= 5; ++i) {
    requests.push_back(MakeRequest(i, 5, 6, i));
    requests.back().priority = i == 1 ? 0 : i == 3 || i == 5 ? 7 : -2;
    harness.Submit(requests.back());
    if (i == 1) harness.Step();
  }
  std::vector<uint64_t> ended;
  while (ended.size() < 5) {
    ASSERT_TRUE(harness.Step());
    for (uint64_t i = 1; i <= 5; ++i) {
      if (harness.Outcome(i).end && std::find(ended.begin(), ended.end(), i) == ended.end())
        ended.push_back(i);
    }
  }
  EXPECT_THAT(ended, ElementsAre(1, 3, 5, 2, 4));
  harness.Finish();
  harness.ExpectSound();
  ExpectAllAsAlone(harness, requests);
}

TEST_P(SchedulerTest, LowerPrioritiesGiveUpTheirPagesFirst) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 6;
  SchedulerHarness harness(options);
  std::vector<Request> requests;
  for (uint64_t i = 1; i <= 3; ++i) {
    requests.push_back(MakeRequest(i, 10, 30, i));
    requests.back().priority = i == 2 ? -1 : 0;
    harness.Submit(requests.back());
  }
  harness.Finish();
  harness.ExpectSound();
  EXPECT_EQ(harness.Outcome(1).end->kv.preemptions, 0);
  EXPECT_EQ(harness.Outcome(2).end->kv.preemptions, 1);
  EXPECT_EQ(harness.Outcome(3).end->kv.preemptions, 0);
  ExpectAllAsAlone(harness, requests);
}

// Higher ones never stop coming, and take places and pages; the low ones end all the same, in
// order.
TEST_P(SchedulerTest, LowPrioritiesEndWhileHigherOnesKeepComing) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 8;
  options.max_batch = 3;
  SchedulerHarness harness(options);
  std::vector<Request> low;
  for (uint64_t i = 1; i <= 2; ++i) {
    low.push_back(MakeRequest(i, 20, 60, i));
    low.back().priority = -1;
    harness.Submit(low.back());
  }
  uint64_t last = 2;
  int waiting = 0;
  std::vector<uint64_t> ended;
  for (int step = 0; step < 1'000 && ended.size() < 2; ++step) {
    for (; waiting < 4; ++waiting) {
      ++last;
      Request high = MakeRequest(last, 10, 30, last);
      high.priority = static_cast<int32_t>(last % 3);
      harness.Submit(high);
    }
    ASSERT_TRUE(harness.Step());
    waiting = static_cast<int>(harness.stats().requests_waiting.load());
    for (uint64_t i = 1; i <= 2; ++i) {
      if (harness.Outcome(i).end && std::find(ended.begin(), ended.end(), i) == ended.end())
        ended.push_back(i);
    }
  }
  EXPECT_THAT(ended, ElementsAre(1, 2));
  EXPECT_GT(harness.stats().preemptions.load(), 0u);
  harness.Finish();
  harness.ExpectSound();
  ExpectAllAsAlone(harness, low);
}

// Who was overtaken so often and got a place keeps it, whoever asks for pages.
TEST_P(SchedulerTest, WhoWasOvertakenKeepsItsPages) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 6;
  options.max_batch = 2;
  SchedulerHarness harness(options);
  Request low = MakeRequest(1, 10, 60, 1);
  low.priority = -1;
  for (uint64_t i = 2; i <= 3; ++i) {  // first, so that the low one has to wait
    harness.Submit(MakeRequest(i, 10, 4, i));
  }
  harness.Step();
  harness.Submit(low);
  for (uint64_t i = 4; i <= 40; ++i) harness.Submit(MakeRequest(i, 10, 40, i));
  harness.Finish();
  harness.ExpectSound();
  EXPECT_GT(harness.stats().preemptions.load(), 0u);
  EXPECT_EQ(harness.Outcome(1).end->kv.preemptions, 0);
  EXPECT_LT(harness.Outcome(1).end->timing.total_seconds,
            harness.Outcome(40).end->timing.total_seconds);
  ExpectAllAsAlone(harness, {low});
}

TEST_P(SchedulerTest, RunsNoMoreSequencesThanSlots) {
  SchedulerHarness::Options options = Options();
  options.max_batch = 3;
  SchedulerHarness harness(options);
  const std::vector<Request> requests = MixedRequests();
  for (const Request& request : requests) harness.Submit(request);
  harness.Finish();
  harness.ExpectSound();
  EXPECT_EQ(harness.runner().max_rows(), 3);
  ExpectAllAsAlone(harness, requests);
}

TEST_P(SchedulerTest, SequencesOfOneRequestDifferAndEndOnce) {
  SchedulerHarness harness(Options());
  Request request = MakeRequest(1, 20, 25);
  request.sampling.n = 3;
  harness.Submit(request);
  harness.Finish();
  harness.ExpectSound();
  const RequestOutcome& outcome = harness.Outcome(1);
  ASSERT_EQ(outcome.sequences.size(), 3u);
  EXPECT_NE(outcome.sequences.at(0).tokens, outcome.sequences.at(1).tokens);
  EXPECT_NE(outcome.sequences.at(1).tokens, outcome.sequences.at(2).tokens);
  EXPECT_EQ(outcome.end->usage.prompt_tokens, 20);
  EXPECT_EQ(outcome.end->usage.completion_tokens, 75);
  ExpectSame(outcome.sequences.at(0), RunAlone(MakeRequest(1, 20, 25)));
}

TEST_P(SchedulerTest, APausedSequenceKeepsItsPlaceAndItsTokens) {
  SchedulerHarness harness(Options());
  const Request request = MakeRequest(1, 20, 40);
  harness.Submit(request);
  for (int i = 0; i < 10; ++i) harness.Step();
  harness.scheduler().Pause(RequestHandle{1});
  while (harness.Step()) {
  }
  EXPECT_TRUE(harness.scheduler().Idle());
  EXPECT_LT(harness.scheduler().pool().num_available(), harness.scheduler().pool().total());
  EXPECT_FALSE(harness.Step());
  harness.scheduler().Resume(RequestHandle{1});
  EXPECT_FALSE(harness.scheduler().Idle());
  harness.Finish();
  harness.ExpectSound();
  EXPECT_EQ(harness.stats().preemptions.load(), 0u);
  ExpectAllAsAlone(harness, {request});
}

TEST_P(SchedulerTest, APausedSequenceDoesNotKeepOthersFromThePool) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 4;
  options.max_batch = 1;
  SchedulerHarness harness(options);
  const std::vector<Request> requests = {MakeRequest(1, 20, 40, 1), MakeRequest(2, 40, 20, 2)};
  harness.Submit(requests[0]);
  for (int i = 0; i < 5; ++i) harness.Step();
  harness.scheduler().Pause(RequestHandle{1});
  harness.Submit(requests[1]);
  while (!harness.Outcome(2).end) ASSERT_TRUE(harness.Step());
  harness.scheduler().Resume(RequestHandle{1});
  harness.Finish();
  harness.ExpectSound();
  ExpectAllAsAlone(harness, requests);
}

TEST_P(SchedulerTest, ComputesNothingTwiceAndNothingBeyondTheEnd) {
  SchedulerHarness harness(Options());
  harness.Submit(MakeRequest(1, 20, 10));
  harness.Finish();
  // The last token is not computed: its logits would be of no use.
  EXPECT_EQ(harness.runner().tokens_computed(), 20 + 9);
  EXPECT_EQ(harness.stats().prompt_tokens.load(), 20u);
  EXPECT_EQ(harness.stats().generation_tokens.load(), 10u);
}

TEST_P(SchedulerTest, AccountsForTimeAndPages) {
  SchedulerHarness::Options options = Options();
  options.max_step_tokens = 16;
  options.max_batch = 1;
  SchedulerHarness harness(options);
  harness.Submit(MakeRequest(1, 8, 4));
  harness.Submit(MakeRequest(2, 32, 11));  // two steps of prefill
  harness.Finish();
  harness.ExpectSound();
  const RequestEnd& end = *harness.Outcome(2).end;
  EXPECT_GT(end.timing.queue_seconds, 0.003);
  EXPECT_NEAR(end.timing.time_to_first_token_seconds,
              end.timing.queue_seconds + end.timing.prefill_seconds, 1e-9);
  EXPECT_NEAR(end.timing.decode_seconds, 0.010, 1e-9);
  EXPECT_NEAR(end.timing.max_inter_token_seconds, 0.001, 1e-9);
  EXPECT_NEAR(end.timing.total_seconds,
              end.timing.time_to_first_token_seconds + end.timing.decode_seconds, 1e-9);
  EXPECT_EQ(end.kv.page_tokens, 16);
  EXPECT_EQ(end.kv.peak_pages, 3);
  // Two pages from the first step on, a third for the positions from 32 on.
  EXPECT_GT(end.kv.page_seconds, 2 * 0.012);
  EXPECT_LT(end.kv.page_seconds, 3 * 0.014);
  const auto count = [](const StatHistogram& histogram) {
    uint64_t sum = 0;
    for (const uint64_t each : histogram.Read().counts) sum += each;
    return sum;
  };
  EXPECT_EQ(count(harness.stats().queue_time), 2u);
  EXPECT_EQ(count(harness.stats().time_to_first_token), 2u);
  EXPECT_EQ(count(harness.stats().inter_token_latency), 13u);
}

TEST_P(SchedulerTest, ReportsProgressWhenAsked) {
  SchedulerHarness::Options options = Options();
  options.max_step_tokens = 16;
  SchedulerHarness harness(options);
  for (const uint64_t handle : {1, 2}) {
    Request request = MakeRequest(handle, 40, 4);
    request.output.report_progress = handle == 1;
    harness.Submit(std::move(request));
  }
  harness.Finish();
  harness.ExpectSound();
  EXPECT_EQ(harness.Outcome(1).only().prompt_tokens_done, 40);
  EXPECT_EQ(harness.Outcome(2).only().prompt_tokens_done, 0);
}

TEST_P(SchedulerTest, TellsWhoWaitsItsPlaceInTheQueue) {
  SchedulerHarness::Options options = Options();
  options.max_batch = 1;
  SchedulerHarness harness(options);
  for (uint64_t handle = 1; handle <= 5; ++handle) {
    Request request = MakeRequest(handle, 4, 300, handle);
    request.output.report_progress = handle != 3;
    harness.Submit(std::move(request));
    if (handle == 1) harness.Step();
  }
  Request other = MakeRequest(6, 4, 1, 6);
  other.tenant = "other";
  other.output.report_progress = true;
  harness.Submit(std::move(other));
  harness.Finish();
  harness.ExpectSound();
  EXPECT_THAT(harness.Outcome(1).queue_positions, IsEmpty());
  EXPECT_THAT(harness.Outcome(2).queue_positions, IsEmpty()) << "the first of those that wait";
  EXPECT_THAT(harness.Outcome(3).queue_positions, IsEmpty()) << "it did not ask";
  EXPECT_THAT(harness.Outcome(4).queue_positions, ElementsAre(2, 1, 0));
  EXPECT_THAT(harness.Outcome(5).queue_positions, ElementsAre(3, 2, 1, 0));
  EXPECT_THAT(harness.Outcome(6).queue_positions, IsEmpty()) << "places are those of a tenant";
}

TEST_P(SchedulerTest, TellsPlacesOfAFastQueueNowAndThen) {
  SchedulerHarness::Options options = Options();
  options.max_batch = 1;
  SchedulerHarness harness(options);
  for (uint64_t handle = 1; handle <= 60; ++handle) {  // 10 ms each
    Request request = MakeRequest(handle, 4, 10, handle);
    request.output.report_progress = handle == 60;
    harness.Submit(std::move(request));
  }
  harness.Finish();
  harness.ExpectSound();
  const std::vector<int>& places = harness.Outcome(60).queue_positions;
  ASSERT_EQ(places.size(), 3u) << "every 250 ms";
  EXPECT_EQ(places.front(), 58);
  EXPECT_TRUE(std::is_sorted(places.rbegin(), places.rend()));
}

TEST_P(SchedulerTest, ScoresThePromptInSlabs) {
  for (const int max_batch : {1, 2, 8}) {
    SCOPED_TRACE(std::to_string(max_batch) + " slots");
    SchedulerHarness::Options options = Options();
    options.max_batch = max_batch;
    SchedulerHarness harness(options);
    std::vector<Request> requests = MixedRequests();
    for (size_t i = 0; i < requests.size(); ++i) {
      if (i % 3 != 2) requests[i].output.prompt_logprobs = static_cast<int>(i);
      harness.Submit(requests[i]);
    }
    Request again = requests[3];  // 28 tokens, of which a page is cached by the time it comes
    again.handle = RequestHandle{99};
    harness.Finish();
    harness.Submit(again);
    requests.push_back(again);
    harness.Finish();
    harness.ExpectSound();
    ExpectAllAsAlone(harness, requests);
    for (const Request& request : requests) {
      const auto& got = harness.Outcome(request.handle.value).only().prompt_logprobs;
      const int num_top = request.output.prompt_logprobs;
      const auto expected =
          num_top < 0 ? std::vector<TokenLogprobs>() : FakeScores(request.prompt, num_top);
      ASSERT_EQ(got.size(), expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i].token, expected[i].token);
        EXPECT_EQ(got[i].logprob, expected[i].logprob) << i;
        EXPECT_EQ(got[i].top.size(), expected[i].top.size());
      }
    }
  }
}

// Controls: with one of these bugs in a plan, the tests above must see it.
struct PlantedPlanBug {
  const char* name;
  std::function<void(StepPlan&)> tamper;
};

class PlantedPlanBugTest : public testing::TestWithParam<PlantedPlanBug> {};

TEST_P(PlantedPlanBugTest, ChangesTokensAndIsReported) {
  SchedulerHarness::Options options;
  options.tamper = GetParam().tamper;
  SchedulerHarness harness(options);
  const std::vector<Request> requests = MixedRequests();
  for (const Request& request : requests) harness.Submit(request);
  harness.Finish();
  EXPECT_FALSE(harness.runner().violations().empty());
  int different = 0;
  for (const Request& request : requests)
    different += harness.Outcome(request.handle.value).only().tokens != RunAlone(request).tokens;
  EXPECT_GT(different, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Bugs, PlantedPlanBugTest,
    testing::Values(PlantedPlanBug{"TwoRowsSharePages",
                                   [](StepPlan& plan) {
                                     if (plan.rows.size() < 2 || plan.step % 5 != 0) return;
                                     plan.pages[static_cast<size_t>(plan.rows[1].first_page)] =
                                         plan.pages[0];
                                   }},
                    PlantedPlanBug{"PagesOutOfOrder",
                                   [](StepPlan& plan) {
                                     for (const StepRow& row : plan.rows) {
                                       if (row.num_pages < 2 || plan.step != 12) continue;
                                       const auto first = static_cast<size_t>(row.first_page);
                                       std::swap(plan.pages[first], plan.pages[first + 1]);
                                     }
                                   }},
                    PlantedPlanBug{"WrongToken",
                                   [](StepPlan& plan) {
                                     if (plan.step == 3) plan.tokens.back() ^= 1;
                                   }},
                    PlantedPlanBug{"SlotWithoutItsPrompt",
                                   [](StepPlan& plan) {
                                     for (SlotReset& reset : plan.slot_resets) {
                                       reset.prompt.pop_back();
                                       reset.sampling.seed += 1;
                                     }
                                   }}),
    [](const auto& info) { return info.param.name; });

TEST_P(SchedulerTest, AFloodOfOneTenantDoesNotDelayAnother) {
  SchedulerHarness::Options options = Options();
  options.max_batch = 2;
  SchedulerHarness harness(options);
  constexpr uint64_t kFlood = 60;
  for (uint64_t handle = 1; handle <= kFlood; ++handle) {
    Request request = MakeRequest(handle, 40, 10, handle);
    request.tenant = "flood";
    harness.Submit(std::move(request));
  }
  harness.Step();
  Request quiet = MakeRequest(kFlood + 1, 40, 10, 7);
  quiet.tenant = "quiet";
  harness.Submit(quiet);
  while (!harness.Outcome(kFlood + 1).end) ASSERT_TRUE(harness.Step());
  uint64_t ended = 0;
  for (uint64_t handle = 1; handle <= kFlood; ++handle) {
    ended += harness.Outcome(handle).end.has_value();
  }
  // The two that ran, and at most one quantum's worth of those that waited.
  EXPECT_LE(ended, 2 + 512 / 50 + 1);
  harness.Finish();
  harness.ExpectSound();
}

TEST_P(SchedulerTest, APreemptedRequestResumesBeforeNewerOnes) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 6;
  SchedulerHarness harness(options);
  std::vector<Request> requests;
  const auto submit = [&](const std::string& tenant, int prompt, int max_tokens) {
    requests.push_back(MakeRequest(requests.size() + 1, prompt, max_tokens, requests.size()));
    requests.back().tenant = tenant;
    requests.back().output.report_progress = true;
    harness.Submit(requests.back());
  };
  for (int i = 0; i < 3; ++i) submit("a", 10, 30);
  while (harness.stats().preemptions.load() == 0) ASSERT_TRUE(harness.Step());
  ASSERT_EQ(harness.Outcome(3).only().preemptions, 1);
  constexpr uint64_t kNewer = 5, kFlood = 200;
  for (uint64_t i = 0; i < kNewer; ++i) submit("a", 4, 4);
  for (uint64_t i = 0; i < kFlood; ++i) submit("b", 4, 4);
  const size_t before = harness.Outcome(3).only().tokens.size();
  while (harness.Outcome(3).only().tokens.size() == before) {
    ASSERT_TRUE(harness.Step());
    for (uint64_t i = 4; i < 4 + kNewer; ++i) ASSERT_FALSE(harness.Outcome(i).admitted) << i;
  }
  uint64_t passed = 0;
  for (uint64_t i = 4 + kNewer; i <= requests.size(); ++i) passed += harness.Outcome(i).admitted;
  EXPECT_LE(passed, 512u / 8);  // what another tenant gets in a turn
  harness.Finish();
  harness.ExpectSound();
  ExpectAllAsAlone(harness, requests);
}

TEST_P(SchedulerTest, TenantsAndWeightsChangeNoToken) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 12;  // some are put back
  SchedulerHarness harness(options);
  std::vector<Request> requests = MixedRequests();
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].tenant = std::string(1, static_cast<char>('a' + i % 3));
    requests[i].tenant_weight = static_cast<int>(1 + i % 3);
    harness.Submit(requests[i]);
  }
  harness.Finish();
  harness.ExpectSound();
  EXPECT_GT(harness.stats().preemptions.load(), 0u);
  ExpectAllAsAlone(harness, requests);
}

}  // namespace
}  // namespace sluice::engine
