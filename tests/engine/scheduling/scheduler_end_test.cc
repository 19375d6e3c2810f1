// How sequences and requests end: every finish reason, every status, exactly once.

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "tests/engine/scheduling/harness.h"

namespace sluice::engine {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class SchedulerEndTest : public testing::TestWithParam<int> {
 protected:
  // Sequences say `script` (then token 1 for ever), whatever their prompt.
  SchedulerHarness::Options Options(std::vector<TokenId> script = {}) const {
    SchedulerHarness::Options options;
    options.depth = GetParam();
    options.tokenizer = std::make_shared<const FakeTokenizer>(std::vector<std::string>{
        "<eos>", "x", "a", "b", "STO", "P!", "\xE2\x82", "\xAC", "abSTOP"});
    options.runner.sample = [script](const FakeContext& context) {
      const auto drawn = static_cast<size_t>(context.position) - context.slot.prompt.size();
      return drawn < script.size() ? script[drawn] : 1;
    };
    return options;
  }
  static Request Ask(int max_tokens = 8) {
    Request request = MakeRequest(1, 5, max_tokens);
    request.stopping.ignore_eos = false;
    return request;
  }
  static const RequestOutcome& Run(SchedulerHarness& harness, Request request) {
    harness.Submit(std::move(request));
    harness.Finish();
    harness.ExpectSound();
    return harness.Outcome(1);
  }
};

INSTANTIATE_TEST_SUITE_P(Depth, SchedulerEndTest, testing::Values(0, 1),
                         [](const auto& info) { return "Depth" + std::to_string(info.param); });

TEST_P(SchedulerEndTest, EosCountsAndGivesNoText) {
  SchedulerHarness harness(Options({2, 3, 0, 2}));
  const RequestOutcome& outcome = Run(harness, Ask());
  EXPECT_THAT(outcome.only().tokens, ElementsAre(2, 3, 0));
  EXPECT_EQ(outcome.only().text, "ab");
  EXPECT_EQ(outcome.only().end->reason, FinishReason::kEos);
  EXPECT_EQ(outcome.only().end->matched_token_id, 0);
  EXPECT_TRUE(outcome.end->status.ok());
  EXPECT_EQ(outcome.end->usage.completion_tokens, 3);
}

TEST_P(SchedulerEndTest, EosGivesTextWhenSpecialTokensAreNotSkipped) {
  SchedulerHarness harness(Options({2, 0}));
  Request request = Ask();
  request.output.skip_special_tokens = false;
  EXPECT_EQ(Run(harness, std::move(request)).only().text, "a<eos>");
}

TEST_P(SchedulerEndTest, IgnoreEosGoesOn) {
  SchedulerHarness harness(Options({2, 0, 3}));
  Request request = Ask(3);
  request.stopping.ignore_eos = true;
  const RequestOutcome& outcome = Run(harness, std::move(request));
  EXPECT_THAT(outcome.only().tokens, ElementsAre(2, 0, 3));
  EXPECT_EQ(outcome.only().end->reason, FinishReason::kLength);
}

TEST_P(SchedulerEndTest, StopTokenEnds) {
  for (const bool include : {false, true}) {
    SchedulerHarness harness(Options({2, 3, 2}));
    Request request = Ask();
    request.stopping.stop_token_ids = {7, 3};
    request.stopping.include_stop_str_in_output = include;
    const RequestOutcome& outcome = Run(harness, std::move(request));
    EXPECT_THAT(outcome.only().tokens, ElementsAre(2, 3));
    EXPECT_EQ(outcome.only().text, include ? "ab" : "a");
    EXPECT_EQ(outcome.only().end->reason, FinishReason::kStop);
    EXPECT_EQ(outcome.only().end->matched_token_id, 3);
  }
}

TEST_P(SchedulerEndTest, StopStringAcrossTokensEnds) {
  for (const bool include : {false, true}) {
    SchedulerHarness harness(Options({2, 4, 5, 3}));
    Request request = Ask();
    request.stopping.stop = {"STOP"};
    request.stopping.include_stop_str_in_output = include;
    const RequestOutcome& outcome = Run(harness, std::move(request));
    EXPECT_THAT(outcome.only().tokens, ElementsAre(2, 4, 5));
    EXPECT_EQ(outcome.only().text, include ? "aSTOP" : "a");
    EXPECT_EQ(outcome.only().end->reason, FinishReason::kStop);
    EXPECT_EQ(outcome.only().end->matched_stop, "STOP");
    EXPECT_FALSE(outcome.only().end->matched_token_id);
  }
}

TEST_P(SchedulerEndTest, HeldBackTextComesWithAnotherEnd) {
  SchedulerHarness harness(Options({2, 4}));
  Request request = Ask(2);
  request.stopping.stop = {"STOP"};
  EXPECT_EQ(Run(harness, std::move(request)).only().text, "aSTO");
}

TEST_P(SchedulerEndTest, StopStringsWorkWithoutTextOut) {
  SchedulerHarness harness(Options({2, 4, 5, 3}));
  Request request = Ask();
  request.stopping.stop = {"STOP"};
  request.output.return_text = false;
  const RequestOutcome& outcome = Run(harness, std::move(request));
  EXPECT_EQ(outcome.only().text, "");
  EXPECT_EQ(outcome.only().end->matched_stop, "STOP");
}

TEST_P(SchedulerEndTest, CodePointsAreWhole) {
  SchedulerHarness::Options options = Options({6, 7, 6});
  SchedulerHarness harness(options);
  harness.Submit(Ask(3));
  std::string before_end;
  while (!harness.Outcome(1).end) {
    if (harness.Outcome(1).sequences.contains(0)) before_end = harness.Outcome(1).only().text;
    ASSERT_TRUE(harness.Step());
  }
  EXPECT_EQ(before_end, "\xE2\x82\xAC");
  EXPECT_EQ(harness.Outcome(1).only().text, "\xE2\x82\xAC\xEF\xBF\xBD");
  harness.Finish();
}

TEST_P(SchedulerEndTest, MaxTokensEnds) {
  SchedulerHarness harness(Options());
  const RequestOutcome& outcome = Run(harness, Ask(4));
  EXPECT_EQ(outcome.only().tokens.size(), 4u);
  EXPECT_EQ(outcome.only().end->reason, FinishReason::kLength);
  SchedulerHarness one(Options());
  EXPECT_EQ(Run(one, Ask(1)).only().tokens.size(), 1u);
}

TEST_P(SchedulerEndTest, ContextEnds) {
  SchedulerHarness::Options options = Options();
  options.max_context = 12;
  SchedulerHarness harness(options);
  const RequestOutcome& outcome = Run(harness, Ask(100));
  EXPECT_EQ(outcome.only().tokens.size(), 7u);  // after a prompt of 5
  EXPECT_EQ(outcome.only().end->reason, FinishReason::kContext);
  SchedulerHarness exact(options);
  EXPECT_EQ(Run(exact, Ask(7)).only().end->reason, FinishReason::kLength);
}

TEST_P(SchedulerEndTest, NothingEndsBeforeMinTokens) {
  SchedulerHarness harness(Options({0, 4, 5, 3, 0}));
  Request request = Ask();
  request.stopping.min_tokens = 5;
  request.stopping.stop = {"STOP"};
  request.stopping.stop_token_ids = {3};
  const RequestOutcome& outcome = Run(harness, std::move(request));
  EXPECT_THAT(outcome.only().tokens, ElementsAre(0, 4, 5, 3, 0));
  EXPECT_EQ(outcome.only().text, "STOP!b");
  EXPECT_EQ(outcome.only().end->reason, FinishReason::kEos);
}

TEST_P(SchedulerEndTest, TokensThatEndAreBannedBeforeTheMinimum) {
  SchedulerHarness::Options options = Options();
  std::vector<TokenId> banned;
  options.runner.sample = [&](const FakeContext& context) {
    banned = context.slot.banned_until_min;
    return 1;
  };
  SchedulerHarness harness(options);
  Request request = Ask();
  request.stopping.min_tokens = 2;
  request.stopping.stop_token_ids = {5, 3, 5};
  Run(harness, request);
  EXPECT_THAT(banned, ElementsAre(0, 3, 5));
  SchedulerHarness ignoring(options);
  request.stopping.ignore_eos = true;
  Run(ignoring, std::move(request));
  EXPECT_THAT(banned, ElementsAre(3, 5));
}

TEST_P(SchedulerEndTest, StreamIntervalGathersTokens) {
  SchedulerHarness harness(Options());
  Request request = Ask(11);
  request.output.stream_interval = 4;
  const RequestOutcome& outcome = Run(harness, std::move(request));
  EXPECT_EQ(outcome.only().tokens.size(), 11u);
  EXPECT_EQ(outcome.only().num_deltas, 3);
  EXPECT_EQ(outcome.only().min_delta_tokens, 4);
  EXPECT_EQ(outcome.only().last_delta_tokens, 3);
}

TEST_P(SchedulerEndTest, MaxTimeEndsSequencesOk) {
  SchedulerHarness harness(Options({4}));
  Request request = Ask(100);
  request.sampling.n = 2;
  request.stopping.stop = {"STOP"};
  request.max_time = harness.now() + milliseconds(1);
  const RequestOutcome& outcome = Run(harness, std::move(request));
  EXPECT_TRUE(outcome.end->status.ok());
  for (const int index : {0, 1}) {
    EXPECT_EQ(outcome.sequences.at(index).end->reason, FinishReason::kDeadline);
    // What was held back for a stop string is given out.
    EXPECT_THAT(outcome.sequences.at(index).text, testing::StartsWith("STO"));
  }
}

TEST_P(SchedulerEndTest, DeadlineEndsARunningRequest) {
  SchedulerHarness harness(Options());
  Request request = Ask(100);
  request.deadline = harness.now() + milliseconds(10);
  const RequestOutcome& outcome = Run(harness, std::move(request));
  EXPECT_TRUE(absl::IsDeadlineExceeded(outcome.end->status));
  EXPECT_EQ(outcome.only().end->reason, FinishReason::kError);
  EXPECT_GE(outcome.only().tokens.size(), 8u);
  EXPECT_LE(outcome.only().tokens.size(), 10u);
}

TEST_P(SchedulerEndTest, APastDeadlineComputesNothing) {
  SchedulerHarness harness(Options());
  Request request = Ask(100);
  request.deadline = harness.now();
  const RequestOutcome& outcome = Run(harness, std::move(request));
  EXPECT_TRUE(absl::IsDeadlineExceeded(outcome.end->status));
  EXPECT_EQ(harness.runner().tokens_computed(), 0);
  EXPECT_FALSE(outcome.admitted);
}

TEST_P(SchedulerEndTest, QueueDeadlineCountsOnlyInTheQueue) {
  SchedulerHarness::Options options = Options();
  options.max_batch = 1;
  SchedulerHarness harness(options);
  Request runs = Ask(50);
  runs.queue_deadline = harness.now() + milliseconds(5);
  harness.Submit(std::move(runs));
  Request waits = MakeRequest(2, 5, 5);
  waits.queue_deadline = harness.now() + milliseconds(5);
  harness.Submit(std::move(waits));
  harness.Finish();
  harness.ExpectSound();
  EXPECT_TRUE(harness.Outcome(1).end->status.ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(harness.Outcome(2).end->status));
  EXPECT_NEAR(harness.Outcome(2).end->timing.total_seconds, 0.005, 0.0021);
}

TEST_P(SchedulerEndTest, TheNextDeadlineIsKnownWhilePaused) {
  SchedulerHarness harness(Options());
  Request request = Ask(50);
  request.deadline = harness.now() + milliseconds(100);
  const Time deadline = *request.deadline;
  harness.Submit(std::move(request));
  harness.Step();
  harness.scheduler().Pause(RequestHandle{1});
  while (harness.Step()) {
  }
  ASSERT_TRUE(harness.scheduler().NextDeadline());
  EXPECT_EQ(*harness.scheduler().NextDeadline(), deadline);
  harness.Advance(milliseconds(200));
  harness.Step();
  EXPECT_TRUE(absl::IsDeadlineExceeded(harness.Outcome(1).end->status));
  EXPECT_FALSE(harness.scheduler().NextDeadline());
  harness.Finish();
}

TEST_P(SchedulerEndTest, CancelEndsAtTheNextBoundary) {
  SchedulerHarness::Options options = Options();
  options.max_batch = 1;
  SchedulerHarness harness(options);
  harness.Submit(Ask(100));
  harness.Submit(MakeRequest(2, 5, 5));
  for (int i = 0; i < 5; ++i) harness.Step();
  harness.Cancel(99, Cancelled("nobody"));  // unknown: ignored
  harness.Cancel(2, Cancelled("gone"));
  harness.Cancel(1, MakeStatus(absl::StatusCode::kAborted, "reads too slowly"));
  harness.Cancel(1, Cancelled("too late"));
  const int64_t computed = harness.runner().tokens_computed();
  harness.Finish();
  harness.ExpectSound();
  EXPECT_LE(harness.runner().tokens_computed(), computed + 1);
  EXPECT_TRUE(absl::IsAborted(harness.Outcome(1).end->status));
  EXPECT_EQ(harness.Outcome(1).end->error_reason, "SLOW_READER");
  EXPECT_EQ(harness.Outcome(1).only().end->reason, FinishReason::kError);
  EXPECT_GT(harness.Outcome(1).end->usage.completion_tokens, 0);
  EXPECT_TRUE(absl::IsCancelled(harness.Outcome(2).end->status));
  EXPECT_EQ(harness.stats().cancelled_running.load(), 1u);
  EXPECT_EQ(harness.stats().cancelled_waiting.load(), 1u);
  EXPECT_DOUBLE_EQ(harness.stats().cancel_to_free.Read().sum, GetParam() * 0.001);
}

TEST_P(SchedulerEndTest, NonFiniteLogitsEndOneRequest) {
  SchedulerHarness::Options options = Options();
  options.runner.finite = [](const FakeContext& context) {
    return context.slot.sampling.seed != 7 || context.position < 9;
  };
  SchedulerHarness harness(options);
  Request request = Ask(50);
  request.sampling.seed = 7;
  request.sampling.n = 2;
  harness.Submit(std::move(request));
  harness.Submit(MakeRequest(2, 5, 50));
  harness.Finish();
  harness.ExpectSound();
  const RequestOutcome& outcome = harness.Outcome(1);
  EXPECT_TRUE(absl::IsInternal(outcome.end->status));
  EXPECT_EQ(outcome.end->error_reason, "NON_FINITE_LOGITS");
  EXPECT_EQ(outcome.sequences.at(0).tokens.size(), 4u);
  for (const auto& [index, sequence] : outcome.sequences) {
    for (const TokenId token : sequence.tokens) EXPECT_GE(token, 0) << index;
    EXPECT_EQ(sequence.end->reason, FinishReason::kError);
  }
  EXPECT_GE(harness.stats().nonfinite_logits.load(), 1u);
  EXPECT_TRUE(harness.Outcome(2).end->status.ok());
  EXPECT_EQ(harness.Outcome(2).only().tokens.size(), 50u);
}

TEST_P(SchedulerEndTest, NonFiniteLogitsOfTheFirstTokenFreeSlotAndPages) {
  SchedulerHarness::Options options = Options();
  options.max_batch = 2;
  options.num_pages = 8;
  options.runner.finite = [](const FakeContext& context) {
    return context.slot.sampling.seed % 2 == 0;
  };
  SchedulerHarness harness(options);
  for (uint64_t i = 1; i <= 20; ++i) {
    Request request = MakeRequest(i, 20, 10, i);
    request.sampling.seed = i;
    harness.Submit(std::move(request));
  }
  harness.Finish();
  harness.ExpectSound();
  for (uint64_t i = 1; i <= 20; ++i) {
    const RequestOutcome& outcome = harness.Outcome(i);
    EXPECT_EQ(outcome.end->error_reason, i % 2 == 0 ? "" : "NON_FINITE_LOGITS") << i;
    EXPECT_EQ(outcome.only().tokens.size(), i % 2 == 0 ? 10u : 0u) << i;
  }
  EXPECT_EQ(harness.stats().nonfinite_logits.load(), 10u);
}

TEST_P(SchedulerEndTest, AFailedStepEndsEveryRequestAndTheEngine) {
  SchedulerHarness::Options options = Options();
  options.max_batch = 1;
  options.runner.fail_at = 6;
  SchedulerHarness harness(options);
  harness.stats().up = true;
  harness.Submit(Ask(100));
  harness.Submit(MakeRequest(2, 5, 5));
  harness.Finish();
  EXPECT_TRUE(absl::IsInternal(harness.Outcome(1).end->status));
  EXPECT_EQ(harness.Outcome(1).end->error_reason, "ENGINE_FAULT");
  EXPECT_THAT(Message(harness.Outcome(1).end->status), HasSubstr("the fake device failed"));
  EXPECT_EQ(harness.Outcome(1).only().tokens.size(), 5u);
  EXPECT_TRUE(absl::IsUnavailable(harness.Outcome(2).end->status));
  EXPECT_EQ(harness.Outcome(2).end->error_reason, "ENGINE_DOWN");
  EXPECT_FALSE(harness.stats().up);
  EXPECT_TRUE(harness.scheduler().down());
  harness.Submit(MakeRequest(3, 5, 5));
  harness.Step();
  EXPECT_TRUE(absl::IsUnavailable(harness.Outcome(3).end->status));
  EXPECT_EQ(harness.Outcome(3).end->error_reason, "ENGINE_DOWN");
  harness.Finish();
  harness.ExpectSound();
}

TEST_P(SchedulerEndTest, TokensNotYetSentDoNotMakeAFaultInternal) {
  SchedulerHarness::Options options = Options();
  options.runner.fail_at = 4;
  SchedulerHarness harness(options);
  Request request = Ask(100);
  request.output.stream_interval = 50;
  const RequestOutcome& outcome = Run(harness, std::move(request));
  EXPECT_EQ(outcome.end->error_reason, "ENGINE_DOWN");
  EXPECT_THAT(outcome.only().tokens, IsEmpty());
}

TEST_P(SchedulerEndTest, DrainRefusesNewWorkAndFinishesOld) {
  SchedulerHarness harness(Options());
  harness.Submit(Ask(5));
  harness.scheduler().Drain();
  harness.Submit(MakeRequest(2, 5, 5));
  harness.Finish();
  harness.ExpectSound();
  EXPECT_TRUE(harness.Outcome(1).end->status.ok());
  EXPECT_TRUE(absl::IsUnavailable(harness.Outcome(2).end->status));
  EXPECT_EQ(harness.Outcome(2).end->error_reason, "DRAINING");
}

TEST_P(SchedulerEndTest, RefusesWhatCouldNeverBeServed) {
  SchedulerHarness::Options options = Options();
  options.num_pages = 4;
  options.max_context = 100;
  SchedulerHarness harness(options);
  uint64_t handle = 0;
  const auto refused = [&](Request request, const char* message) {
    request.handle = RequestHandle{++handle};
    harness.Submit(std::move(request));
    harness.Step();
    ASSERT_TRUE(harness.Outcome(handle).end);
    EXPECT_TRUE(absl::IsInvalidArgument(harness.Outcome(handle).end->status));
    EXPECT_THAT(Message(harness.Outcome(handle).end->status), HasSubstr(message));
  };
  refused(MakeRequest(1, 0, 5), "prompt: expected at least 1");
  refused(MakeRequest(1, 100, 1), "prompt: expected at most 99 tokens, got 100");
  refused(MakeRequest(1, 5, 0), "max_tokens");
  refused(MakeRequest(1, 50, 16), "room for 64 positions, 65 are needed");
  Request none = MakeRequest(1, 5, 5);
  none.sampling.n = 0;
  refused(std::move(none), "n: expected 1 to 256");
  harness.Submit(MakeRequest(++handle, 50, 15));  // fits exactly
  harness.Finish();
  harness.ExpectSound();
  EXPECT_TRUE(harness.Outcome(handle).end->status.ok());
}

TEST_P(SchedulerEndTest, WithoutTokenizerTokensOnly) {
  SchedulerHarness::Options options = Options({0, 70, 2});
  options.tokenizer = nullptr;
  SchedulerHarness harness(options);
  Request request = Ask(3);
  const RequestOutcome& outcome = Run(harness, std::move(request));
  EXPECT_THAT(outcome.only().tokens, ElementsAre(0, 70, 2));
  EXPECT_EQ(outcome.only().text, "");
}

TEST_P(SchedulerEndTest, ATokenBeyondTheVocabularyHasNoText) {
  SchedulerHarness harness(Options({2, 70, 3}));
  EXPECT_EQ(Run(harness, Ask(3)).only().text, "ab");
}

TEST(FinishReasonTest, Names) {
  EXPECT_EQ(Name(FinishReason::kEos), "eos");
  EXPECT_EQ(Name(FinishReason::kStop), "stop");
  EXPECT_EQ(Name(FinishReason::kLength), "length");
  EXPECT_EQ(Name(FinishReason::kContext), "context");
  EXPECT_EQ(Name(FinishReason::kDeadline), "deadline");
  EXPECT_EQ(Name(FinishReason::kError), "error");
}

}  // namespace
}  // namespace sluice::engine
