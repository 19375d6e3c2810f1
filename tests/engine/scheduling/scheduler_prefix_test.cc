// What sequences share: pages found in the prefix cache. That nothing changes but what is computed.

#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/scheduler.h"
#include "tests/engine/scheduling/harness.h"

namespace sluice::engine {
namespace {

class SchedulerPrefixTest : public testing::TestWithParam<int> {
 protected:
  SchedulerHarness::Options Options() const {
    SchedulerHarness::Options options;
    options.depth = GetParam();
    return options;
  }
};

INSTANTIATE_TEST_SUITE_P(Depth, SchedulerPrefixTest, testing::Values(0, 1),
                         [](const auto& info) { return "Depth" + std::to_string(info.param); });

// Runs `request` alone to its end; how many tokens were computed for it?
int64_t Serve(SchedulerHarness& harness, const Request& request) {
  const int64_t before = harness.runner().tokens_computed();
  harness.Submit(request);
  harness.Finish();
  harness.ExpectSound();
  return harness.runner().tokens_computed() - before;
}

// The same text as `request`, by another name.
Request Again(const Request& request, uint64_t handle) {
  Request again = request;
  again.handle = RequestHandle{handle};
  return again;
}

std::vector<TokenId> TokensWithoutCache(const Request& request) {
  SchedulerHarness harness({.prefix_cache = false});
  Serve(harness, request);
  return harness.Outcome(request.handle.value).only().tokens;
}

TEST_P(SchedulerPrefixTest, ARepeatedPromptIsComputedFromItsLastPageOn) {
  for (const int size : {1, 15, 16, 17, 32, 33, 40}) {
    SCOPED_TRACE(std::to_string(size) + " tokens");
    SchedulerHarness harness(Options());
    const Request request = MakeRequest(1, size, 5);
    const int found = (size - 1) / 16 * 16;
    EXPECT_EQ(Serve(harness, request), size + 4);
    EXPECT_EQ(Serve(harness, Again(request, 2)), size - found + 4);
    EXPECT_EQ(harness.Outcome(1).only().tokens, harness.Outcome(2).only().tokens);
    EXPECT_EQ(harness.Outcome(1).end->usage.cached_prompt_tokens, 0);
    EXPECT_EQ(harness.Outcome(2).end->usage.cached_prompt_tokens, found);
    EXPECT_EQ(harness.Outcome(2).end->usage.prompt_tokens, size);
    EXPECT_EQ(harness.Outcome(2).end->kv.pages_reused, found / 16);
    EXPECT_EQ(harness.stats().prefix_cache_queries.load(), static_cast<uint64_t>(2 * size));
    EXPECT_EQ(harness.stats().prefix_cache_hits.load(), static_cast<uint64_t>(found));
    EXPECT_EQ(harness.stats().prompt_tokens.load(), static_cast<uint64_t>(2 * size - found));
    EXPECT_EQ(harness.stats().recomputed_tokens.load(), 0u);
    harness.scheduler().FlushPrefixCache();
    EXPECT_EQ(harness.scheduler().pool().num_free(), harness.scheduler().pool().total());
  }
}

TEST_P(SchedulerPrefixTest, AConversationGoesOnWhereItWas) {
  SchedulerHarness harness(Options());
  const Request first = MakeRequest(1, 20, 30);
  Serve(harness, first);
  Request second = MakeRequest(2, 5, 10);
  const std::vector<TokenId> question = second.prompt;
  second.prompt = first.prompt;
  const std::vector<TokenId>& reply = harness.Outcome(1).only().tokens;
  second.prompt.insert(second.prompt.end(), reply.begin(), reply.end());
  second.prompt.insert(second.prompt.end(), question.begin(), question.end());
  // Of the 50 tokens before the question all but the last were computed: three full pages.
  EXPECT_EQ(Serve(harness, second), 55 - 48 + 9);
  EXPECT_EQ(harness.Outcome(2).end->usage.cached_prompt_tokens, 48);
  EXPECT_EQ(harness.Outcome(2).only().tokens, TokensWithoutCache(second));
}

TEST_P(SchedulerPrefixTest, DomainsBypassAndTheSwitchKeepPagesApart) {
  SchedulerHarness harness(Options());
  Request request = MakeRequest(1, 40, 5);
  request.cache.domain = CacheDomain("", "a");
  EXPECT_EQ(Serve(harness, request), 44);
  Request other = Again(request, 2);
  other.cache.domain = CacheDomain("", "b");
  EXPECT_EQ(Serve(harness, other), 44);
  Request bypass = Again(request, 3);
  bypass.cache.bypass = true;
  EXPECT_EQ(Serve(harness, bypass), 44);
  EXPECT_EQ(harness.stats().prefix_cache_queries.load(), 80u);
  EXPECT_EQ(Serve(harness, Again(request, 4)), 12);

  SchedulerHarness bypassed(Options());
  Serve(bypassed, bypass);
  EXPECT_EQ(bypassed.scheduler().pool().cache().size(), 0) << "it leaves nothing either";
  EXPECT_EQ(Serve(bypassed, Again(request, 5)), 44);

  SchedulerHarness::Options off = Options();
  off.prefix_cache = false;
  SchedulerHarness without(off);
  EXPECT_EQ(Serve(without, request) + Serve(without, Again(request, 2)), 88);
  EXPECT_EQ(without.stats().prefix_cache_queries.load(), 0u);
}

TEST(CacheDomainTest, TellsTenantAndSaltApart) {
  EXPECT_NE(CacheDomain("a", "b"), CacheDomain("ab", ""));
  EXPECT_NE(CacheDomain("", "ab"), CacheDomain("ab", ""));
  EXPECT_NE(CacheDomain("1", ":1"), CacheDomain("", "1:1"));
  EXPECT_EQ(CacheDomain("a", "b"), CacheDomain("a", "b"));
}

TEST_P(SchedulerPrefixTest, EqualPromptsAtOnceComeToShareTheirPages) {
  SchedulerHarness::Options options = Options();
  options.max_step_tokens = 200;
  SchedulerHarness harness(options);
  std::vector<Request> requests;
  for (uint64_t i = 1; i <= 4; ++i) {
    requests.push_back(Again(MakeRequest(1, 40, 20), i));
    requests.back().sampling.seed = i;
    harness.Submit(requests.back());
  }
  for (int i = 0; i < 4; ++i) harness.Step();
  const PagePool& pool = harness.scheduler().pool();
  EXPECT_EQ(pool.total() - pool.num_available(), 2 + 4);
  harness.Finish();
  harness.ExpectSound();
  for (const Request& request : requests)
    EXPECT_EQ(harness.Outcome(request.handle.value).only().tokens, TokensWithoutCache(request));
}

TEST_P(SchedulerPrefixTest, CachedPagesDoNotKeepOthersOut) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 8;
  SchedulerHarness harness(options);
  Serve(harness, MakeRequest(1, 100, 20, 1));
  EXPECT_GT(harness.scheduler().pool().num_cached(), 5);
  EXPECT_EQ(Serve(harness, MakeRequest(2, 100, 20, 2)), 119);
  EXPECT_EQ(harness.stats().preemptions.load(), 0u);
  EXPECT_EQ(harness.Outcome(2).only().tokens, TokensWithoutCache(MakeRequest(2, 100, 20, 2)));
}

TEST_P(SchedulerPrefixTest, APreemptedSequenceFindsWhatItHadComputed) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 12;
  SchedulerHarness harness(options);
  std::vector<Request> requests;
  for (uint64_t i = 1; i <= 3; ++i) {
    requests.push_back(MakeRequest(i, 20, 60, i));
    harness.Submit(requests.back());
  }
  harness.Finish();
  harness.ExpectSound();
  EXPECT_GT(harness.stats().preemptions.load(), 0u);
  for (const Request& request : requests)
    EXPECT_EQ(harness.Outcome(request.handle.value).only().tokens, TokensWithoutCache(request));
  SchedulerHarness::Options off = options;
  off.prefix_cache = false;
  SchedulerHarness without(off);
  for (const Request& request : requests) without.Submit(request);
  without.Finish();
  EXPECT_LT(harness.stats().recomputed_tokens.load(), without.stats().recomputed_tokens.load());
}

TEST_P(SchedulerPrefixTest, WhatAZombieComputesIsNotCached) {
  SchedulerHarness::Options options = Options();
  // The token at position 31 ends the sequence; at depth 1 its keys are being computed then, and
  // would fill the second page.
  options.runner.sample = [](const FakeContext& context) { return context.position == 31 ? 9 : 8; };
  SchedulerHarness harness(options);
  Request request = MakeRequest(1, 20, 100);
  request.stopping.stop_token_ids = {9};
  const int64_t computed = Serve(harness, request);
  EXPECT_EQ(computed, 31 + GetParam());
  EXPECT_EQ(harness.scheduler().pool().cache().size(), 1);
}

TEST_P(SchedulerPrefixTest, NothingUnderLogitsThatAreNotFiniteIsCached) {
  SchedulerHarness::Options options = Options();
  options.max_step_tokens = 16;  // two chunks that sample nothing come first
  options.runner.finite = [](const FakeContext& context) { return context.position != 40; };
  SchedulerHarness harness(options);
  Serve(harness, MakeRequest(1, 40, 5));
  EXPECT_EQ(harness.Outcome(1).end->error_reason, "NON_FINITE_LOGITS");
  EXPECT_EQ(harness.scheduler().pool().cache().size(), 0);
  EXPECT_EQ(Serve(harness, MakeRequest(2, 39, 1)), 39);  // the same beginning
}

TEST_P(SchedulerPrefixTest, ACancelledPromptLeavesNothingHalfDone) {
  SchedulerHarness::Options options = Options();
  options.max_step_tokens = 16;
  SchedulerHarness harness(options);
  harness.Submit(MakeRequest(1, 100, 5));
  for (int i = 0; i < 3; ++i) harness.Step();
  harness.Cancel(1, Cancelled("gone"));
  harness.Finish();
  EXPECT_EQ(harness.scheduler().pool().cache().size(), 0);
  EXPECT_EQ(Serve(harness, MakeRequest(2, 100, 5)), 104);
}

// 2,000 tokens shared: what the second request computes before its first token is a page's rest.
TEST_P(SchedulerPrefixTest, ALongSharedPromptCostsTheSecondRequestAlmostNothing) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 300;
  options.max_context = 4096;
  SchedulerHarness harness(options);
  Request request = MakeRequest(1, 2010, 1);
  EXPECT_EQ(Serve(harness, request), 2010);
  Request second = Again(request, 2);
  for (size_t i = 2000; i < second.prompt.size(); ++i) second.prompt[i] ^= 1;
  EXPECT_EQ(Serve(harness, second), 10);
  EXPECT_LE(harness.Outcome(2).end->timing.time_to_first_token_seconds,
            0.1 * harness.Outcome(1).end->timing.time_to_first_token_seconds);  // simulated time
}

}  // namespace
}  // namespace sluice::engine
