// A stream that broke goes on as if it never had, wherever it was cut.

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/resume.h"
#include "tests/engine/scheduling/harness.h"

namespace sluice::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class SchedulerResumeTest : public testing::TestWithParam<int> {
 protected:
  SchedulerHarness::Options Options() const {
    SchedulerHarness::Options options;
    options.depth = GetParam();
    return options;
  }
  // Sequences say `script` (then token 1 for ever), whatever their prompt.
  SchedulerHarness::Options Scripted(std::vector<TokenId> script) const {
    SchedulerHarness::Options options = Options();
    options.tokenizer = std::make_shared<const FakeTokenizer>(
        std::vector<std::string>{"<eos>", "x", "a", "b", "STO", "P!", "\xE2\x82", "\xAC", "ST"});
    options.runner.sample = [script](const FakeContext& context) {
      const auto drawn = static_cast<size_t>(context.position) - context.slot.prompt.size();
      return drawn < script.size() ? script[drawn] : 1;
    };
    return options;
  }
};

INSTANTIATE_TEST_SUITE_P(Depth, SchedulerResumeTest, testing::Values(0, 1),
                         [](const auto& info) { return "Depth" + std::to_string(info.param); });

// A stream that never broke, and what of it was there after each token.
struct Whole {
  RequestOutcome outcome;
  std::vector<std::string> texts;  // by number of tokens

  const SequenceOutcome& only() const { return outcome.only(); }
};

Whole RunWhole(const SchedulerHarness::Options& options, const Request& request) {
  SchedulerHarness harness(options);
  harness.Submit(request);
  Whole whole;
  whole.texts.emplace_back();
  while (harness.Step()) {
    const RequestOutcome& outcome = harness.Outcome(request.handle.value);
    if (outcome.sequences.empty()) continue;
    const SequenceOutcome& sequence = outcome.only();
    if (sequence.tokens.size() == whole.texts.size()) whole.texts.push_back(sequence.text);
    EXPECT_EQ(sequence.tokens.size() + 1, whole.texts.size()) << "one token a step";
  }
  harness.Finish();
  harness.ExpectSound();
  whole.outcome = harness.Outcome(request.handle.value);
  return whole;
}

Request BrokenAfter(const Whole& whole, size_t num_tokens, Request request,
                    const std::shared_ptr<const Tokenizer>& tokenizer) {
  const auto& tokens = whole.only().tokens;
  request.resume.token_ids.assign(tokens.begin(),
                                  tokens.begin() + static_cast<std::ptrdiff_t>(num_tokens));
  EXPECT_FALSE(ReplayOutput(tokenizer, request));
  return request;
}

void ExpectRest(const RequestOutcome& got, const Whole& whole, size_t num_tokens) {
  const SequenceOutcome& rest = got.only();
  const SequenceOutcome& all = whole.only();
  const auto cut = static_cast<std::ptrdiff_t>(num_tokens);
  ASSERT_TRUE(got.end);
  EXPECT_TRUE(got.end->status.ok()) << got.end->status;
  EXPECT_EQ(rest.tokens, std::vector<TokenId>(all.tokens.begin() + cut, all.tokens.end()));
  EXPECT_EQ(whole.texts[num_tokens] + rest.text, all.text);
  if (!rest.tokens.empty()) {
    EXPECT_EQ(rest.first_position, static_cast<int>(num_tokens));
  }
  ASSERT_TRUE(rest.end);
  EXPECT_EQ(Name(rest.end->reason), Name(all.end->reason));
  EXPECT_EQ(rest.end->matched_stop, all.end->matched_stop);
  EXPECT_EQ(rest.end->matched_token_id, all.end->matched_token_id);
  ASSERT_EQ(rest.logprobs.size(), rest.tokens.size());
  for (size_t i = 0; i < rest.logprobs.size(); ++i)
    EXPECT_EQ(rest.logprobs[i].logprob, all.logprobs[num_tokens + i].logprob);
  EXPECT_EQ(got.end->usage.completion_tokens, whole.outcome.end->usage.completion_tokens);
  EXPECT_EQ(got.end->usage.resumed_tokens, static_cast<int32_t>(num_tokens));
  EXPECT_EQ(got.end->usage.prompt_tokens, whole.outcome.end->usage.prompt_tokens);
}

// Resumes `request` after each of its tokens, on an engine of its own each time.
void ExpectAllCuts(const SchedulerHarness::Options& options, const Request& request,
                   const Whole& whole) {
  for (size_t cut = 0; cut <= whole.only().tokens.size(); ++cut) {
    SCOPED_TRACE("cut after " + std::to_string(cut) + " of " +
                 std::to_string(whole.only().tokens.size()));
    SchedulerHarness harness(options);
    harness.Submit(BrokenAfter(whole, cut, request, options.tokenizer));
    harness.Finish();
    harness.ExpectSound();
    ExpectRest(harness.Outcome(request.handle.value), whole, cut);
  }
}

// FakeSample draws from all tokens, seed, minimum and count: one that were lost or counted wrong
// would change what follows. Stop strings and code points straddle many of the cuts.
TEST_P(SchedulerResumeTest, GoesOnAfterAnyToken) {
  int num_stopped = 0;
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Request request = MakeRequest(1, 1 + static_cast<int>(seed * 7 % 40), 48, seed);
    request.stopping.ignore_eos = seed % 3 == 0;
    request.stopping.min_tokens = seed % 4 == 0 ? 20 : 0;
    request.stopping.stop = {"abab", "b a", "\xC3\xA9" + std::string("c")};
    request.stopping.include_stop_str_in_output = seed % 5 == 0;
    request.output.skip_special_tokens = seed % 2 == 0;
    request.output.logprobs = 1;
    const Whole whole = RunWhole(Options(), request);
    num_stopped += whole.only().end->reason == FinishReason::kStop ? 1 : 0;
    ExpectAllCuts(Options(), request, whole);
  }
  EXPECT_GT(num_stopped, 4);
}

TEST_P(SchedulerResumeTest, FindsAStopStringThatBeganBefore) {
  const SchedulerHarness::Options options = Scripted({2, 4, 5, 3});
  Request request = MakeRequest(1, 5, 8);
  request.stopping.stop = {"STOP"};
  request.output.logprobs = 0;
  const Whole whole = RunWhole(options, request);
  EXPECT_THAT(whole.texts, ElementsAre("", "a", "a", "a"));  // "STO" is held back
  EXPECT_EQ(whole.only().end->matched_stop, "STOP");
  ExpectAllCuts(options, request, whole);
}

TEST_P(SchedulerResumeTest, SaysWhatWasHeldBackWhenItWasNoStopString) {
  const SchedulerHarness::Options options = Scripted({8, 4, 3});
  Request request = MakeRequest(1, 5, 3);
  request.stopping.stop = {"STOP"};
  request.output.logprobs = 0;
  const Whole whole = RunWhole(options, request);
  EXPECT_THAT(whole.texts, ElementsAre("", "", "ST", "STSTOb"));
  ExpectAllCuts(options, request, whole);
}

TEST_P(SchedulerResumeTest, EndsACodePointThatBeganBefore) {
  const SchedulerHarness::Options options = Scripted({2, 6, 7, 6});
  Request request = MakeRequest(1, 5, 4);
  request.output.logprobs = 0;
  const Whole whole = RunWhole(options, request);
  EXPECT_THAT(whole.texts, ElementsAre("", "a", "a", "a\xE2\x82\xAC", "a\xE2\x82\xAC\xEF\xBF\xBD"));
  ExpectAllCuts(options, request, whole);
}

TEST_P(SchedulerResumeTest, TellsTheEndWhenOnlyThatWasLost) {
  struct Case {
    std::vector<TokenId> script;
    int max_tokens = 8;
    FinishReason reason;
  };
  for (const Case& one :
       {Case{{2, 3, 0}, 8, FinishReason::kEos}, Case{{2, 4, 5}, 8, FinishReason::kStop},
        Case{{2, 3, 2}, 3, FinishReason::kLength}}) {
    SchedulerHarness harness(Scripted(one.script));
    Request request = MakeRequest(1, 5, one.max_tokens);
    request.stopping.ignore_eos = false;
    request.stopping.stop = {"STOP"};
    request.resume.token_ids = one.script;
    ASSERT_FALSE(ReplayOutput(Scripted({}).tokenizer, request));
    harness.Submit(std::move(request));
    harness.Finish();
    harness.ExpectSound();
    EXPECT_EQ(Name(harness.Outcome(1).only().end->reason), Name(one.reason));
    EXPECT_EQ(harness.Outcome(1).only().text, "");
    EXPECT_EQ(harness.Outcome(1).end->usage.completion_tokens, 3);
    EXPECT_EQ(harness.runner().steps(), 0u);
  }
}

TEST_P(SchedulerResumeTest, EndsWhereTheContextDoes) {
  SchedulerHarness::Options options = Options();
  options.max_context = 40;
  Request request = MakeRequest(1, 25, 100);
  request.output.logprobs = 0;
  const Whole whole = RunWhole(options, request);
  ASSERT_EQ(whole.only().end->reason, FinishReason::kContext);
  ExpectAllCuts(options, request, whole);
}

// What an engine has computed for the broken stream is there for the resumed one, but the usage
// speaks of the prompt alone.
TEST_P(SchedulerResumeTest, FindsThePagesOfItsOwnOutput) {
  const SchedulerHarness::Options options = Options();
  Request request = MakeRequest(1, 32, 64);
  request.output.logprobs = 0;
  const Whole whole = RunWhole(options, request);
  SchedulerHarness harness(options);
  harness.Submit(request);
  harness.Finish();
  const int64_t computed = harness.runner().tokens_computed();
  Request again = BrokenAfter(whole, 60, request, options.tokenizer);
  again.handle = RequestHandle{2};
  harness.Submit(std::move(again));
  harness.Finish();
  harness.ExpectSound();
  ExpectRest(harness.Outcome(2), whole, 60);
  EXPECT_EQ(harness.Outcome(2).end->usage.cached_prompt_tokens, 32);
  EXPECT_EQ(harness.Outcome(2).end->kv.pages_reused, 5);  // 80 of 92 positions
  EXPECT_LE(harness.runner().tokens_computed() - computed, 12 + 4);
  EXPECT_EQ(harness.stats().prefix_cache_hits.load(), 32u);
  EXPECT_EQ(harness.stats().generation_tokens.load(), 64u + 4u);
}

TEST_P(SchedulerResumeTest, RefusesWhatCannotHaveBeen) {
  SchedulerHarness harness(Options());
  Request several = MakeRequest(1, 5, 8);
  several.sampling.n = 2;
  several.resume.token_ids = {1, 2};
  harness.Submit(std::move(several));
  Request longer = MakeRequest(2, 5, 8);
  longer.resume.token_ids.assign(8, 1);  // nobody has replayed them
  harness.Submit(std::move(longer));
  Request beyond = MakeRequest(3, 500, 100);
  beyond.resume.token_ids.assign(13, 1);
  harness.Submit(std::move(beyond));
  harness.Finish();
  for (const uint64_t handle : {1, 2, 3}) {
    EXPECT_TRUE(absl::IsInvalidArgument(harness.Outcome(handle).end->status)) << handle;
    EXPECT_THAT(harness.Outcome(handle).end->status.message(), HasSubstr("resume")) << handle;
    EXPECT_THAT(harness.Outcome(handle).sequences, IsEmpty());
  }
}

TEST(ReplayOutputTest, NamesTheFirstTokenBeyondTheEnd) {
  const std::shared_ptr<const Tokenizer> tokenizer = FakeTokenizer::Make();
  Request request = MakeRequest(1, 5, 8);
  request.stopping.ignore_eos = false;
  request.resume.token_ids = {1, 2, FakeTokenizer::kEos, 1, 1};
  EXPECT_EQ(ReplayOutput(tokenizer, request), 3u);
  request.stopping.min_tokens = 4;  // no end before
  EXPECT_FALSE(ReplayOutput(tokenizer, request));
  EXPECT_FALSE(request.resume.end);
  request.resume.token_ids.assign(9, 1);
  EXPECT_EQ(ReplayOutput(tokenizer, request), 8u);
  EXPECT_EQ(Name(request.resume.end->reason), Name(FinishReason::kLength));
  // Without a vocabulary nothing is known to end a generation.
  request.stopping.min_tokens = 0;
  request.resume.token_ids = {FakeTokenizer::kEos, 1};
  EXPECT_FALSE(ReplayOutput(nullptr, request));
}

}  // namespace
}  // namespace sluice::engine
