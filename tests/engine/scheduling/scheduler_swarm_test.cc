// Random work on random engines, against a reference that has neither pages nor steps.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/resume.h"
#include "tests/engine/scheduling/harness.h"
#include "tests/engine/scheduling/reference.h"

namespace sluice::engine {
namespace {

using std::chrono::milliseconds;

class Swarm {
 public:
  explicit Swarm(uint64_t seed) : random_(seed), options_(MakeOptions()), harness_(options_) {
    // Each seed leaves some kinds of trouble out.
    cancels_ = Chance(2);
    pauses_ = Chance(2);
    deadlines_ = Chance(2);
    priorities_ = Chance(2);
    num_requests_ = Between(1, 24);
  }

  void Run() {
    int submitted = 0;
    int steps = 0;
    while (submitted < num_requests_ || harness_.scheduler().live_sequences() > 0) {
      ASSERT_LT(++steps, 60000) << "no progress";
      while (submitted < num_requests_ && Chance(3)) Submit(static_cast<uint64_t>(++submitted));
      if (submitted > 0) Disturb(1 + random_() % static_cast<uint64_t>(submitted));
      if (!harness_.Step()) harness_.Advance(milliseconds(1));
      // Readers come back in the end.
      if (submitted == num_requests_ && steps % 64 == 0) ResumeAll();
      if (testing::Test::HasFailure()) return;
    }
    harness_.Finish();
    harness_.ExpectSound();
    Compare();
  }

  uint64_t preemptions() { return harness_.stats().preemptions.load(); }
  uint64_t hits() { return harness_.stats().prefix_cache_hits.load(); }
  int num_equal() const { return num_equal_; }
  int num_scored() const { return num_scored_; }
  int num_resumed() const { return num_resumed_; }

 private:
  bool Chance(uint64_t one_in) { return random_() % one_in == 0; }
  int Between(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1));
  }

  SchedulerHarness::Options MakeOptions() {
    SchedulerHarness::Options options;
    options.depth = Between(0, 1);
    options.num_pages = Chance(3) ? Between(1, 3) : Between(4, 40);
    options.max_batch = Between(1, 8);
    options.max_step_tokens = Chance(4) ? Between(1, 4) : Between(4, 80);
    options.max_context = Between(20, 400);
    options.prefix_cache = !Chance(4);
    if (Chance(8)) options.runner.fail_at = static_cast<uint64_t>(Between(1, 150));
    if (Chance(4)) {
      options.runner.finite = [](const FakeContext& context) {
        return context.slot.sampling.seed % 8 != 0 || context.position % 23 != 0;
      };
    }
    return options;
  }

  void Submit(uint64_t handle) {
    const int room = std::min(options_.num_pages * 16 + 1, options_.max_context);
    const int prompt = Between(1, std::min(room - 1, 120));
    // Beyond the context only when the pool holds all of it.
    const bool beyond = room == options_.max_context && Chance(5);
    const int max_tokens = Between(1, std::min(room - prompt, 90)) + (beyond ? room : 0);
    Request request = MakeRequest(handle, prompt, max_tokens, random_());
    request.stopping.ignore_eos = Chance(2);
    request.stopping.min_tokens = Chance(2) ? 0 : Between(0, std::min(max_tokens, 10));
    request.stopping.include_stop_str_in_output = Chance(2);
    if (Chance(3)) request.stopping.stop_token_ids = {Between(0, 63), Between(0, 63)};
    if (Chance(3)) {
      for (int i = Between(1, 3); i > 0; --i) {
        std::string stop;
        for (int j = Between(1, 5); j > 0; --j) stop.push_back("ab c"[random_() % 4]);
        request.stopping.stop.push_back(stop);
      }
    }
    request.output.skip_special_tokens = Chance(2);
    request.output.stream_interval = Chance(2) ? 1 : Between(2, 9);
    request.output.logprobs = Between(-1, 2);
    request.output.report_progress = Chance(4);
    if (Chance(4)) request.output.prompt_logprobs = Between(0, 2);
    request.sampling.n = Chance(4) ? Between(2, 4) : 1;
    if (priorities_) request.priority = Between(-1, 1);
    ShareBeginning(request);
    if (Chance(4)) Break(request);
    if (deadlines_ && Chance(6)) request.deadline = harness_.now() + milliseconds(Between(0, 300));
    if (deadlines_ && Chance(6))
      request.queue_deadline = harness_.now() + milliseconds(Between(0, 100));
    if (deadlines_ && Chance(6)) request.max_time = harness_.now() + milliseconds(Between(0, 300));
    requests_[handle] = request;
    harness_.Submit(std::move(request));
  }

  // A stream of this request broke, and goes on now.
  void Break(Request& request) {
    request.sampling.n = 1;
    const std::vector<TokenId> tokens =
        MakeReference(request, 0, options_.tokenizer, 64, options_.max_context).tokens;
    const size_t most = std::min(tokens.size(), static_cast<size_t>(request.stopping.max_tokens));
    const int cut = Between(0, static_cast<int>(most));
    request.resume.token_ids.assign(tokens.begin(), tokens.begin() + cut);
    if (!request.resume.token_ids.empty()) request.output.prompt_logprobs = -1;
    ASSERT_FALSE(ReplayOutput(options_.tokenizer, request));
  }

  // Most prompts begin like others, as conversations and system prompts do.
  void ShareBeginning(Request& request) {
    request.cache.bypass = Chance(8);
    if (Chance(6)) request.cache.domain = "apart";
    if (Chance(4)) return;
    Request other = MakeRequest(1, static_cast<int>(request.prompt.size()), 1, 1 + random_() % 3);
    if (Chance(3) && !requests_.empty()) other = requests_.rbegin()->second;
    const size_t most = std::min(request.prompt.size(), other.prompt.size());
    std::copy_n(other.prompt.begin(), Chance(2) ? most : random_() % (most + 1),
                request.prompt.begin());
  }

  void Disturb(uint64_t handle) {
    if (cancels_ && Chance(150)) harness_.Cancel(handle, Cancelled("gone"));
    if (pauses_ && Chance(20)) harness_.scheduler().Pause(RequestHandle{handle});
    if (pauses_ && Chance(10)) harness_.scheduler().Resume(RequestHandle{handle});
  }

  void ResumeAll() {
    for (const auto& [handle, request] : requests_)
      harness_.scheduler().Resume(RequestHandle{handle});
  }

  void Compare() {
    ASSERT_EQ(harness_.collector().num_ended(), num_requests_);
    for (const auto& [handle, request] : requests_) {
      const RequestOutcome& outcome = harness_.Outcome(handle);
      const absl::Status& status = outcome.end->status;
      if (!status.ok()) {
        const std::string& reason = outcome.end->error_reason;
        const bool failed = reason == "ENGINE_FAULT" || reason == "ENGINE_DOWN";
        ASSERT_EQ(failed && !options_.runner.fail_at, false) << status;
        ASSERT_EQ(reason == "NON_FINITE_LOGITS" && !options_.runner.finite, false) << status;
        ASSERT_TRUE(failed || reason == "NON_FINITE_LOGITS" || absl::IsCancelled(status) ||
                    absl::IsDeadlineExceeded(status))
            << status;
        if (outcome.sequences.empty()) continue;  // came when the engine was down
      }
      ASSERT_EQ(static_cast<int>(outcome.sequences.size()), request.sampling.n);
      for (const auto& [index, sequence] : outcome.sequences) {
        SCOPED_TRACE("request " + std::to_string(handle) + " sequence " + std::to_string(index));
        CompareScores(request, index, sequence);
        ReferenceSequence expected =
            MakeReference(request, index, options_.tokenizer, 64, options_.max_context);
        const auto num_resumed = static_cast<std::ptrdiff_t>(request.resume.token_ids.size());
        expected.tokens.erase(expected.tokens.begin(), expected.tokens.begin() + num_resumed);
        Compare(sequence, expected, num_resumed > 0);
      }
    }
  }

  void CompareScores(const Request& request, int index, const SequenceOutcome& got) {
    if (index != 0 || request.output.prompt_logprobs < 0) {
      ASSERT_TRUE(got.prompt_logprobs.empty());
      return;
    }
    const auto expected = FakeScores(request.prompt, request.output.prompt_logprobs);
    ASSERT_LE(got.prompt_logprobs.size(), expected.size());
    if (!got.tokens.empty()) {
      ASSERT_EQ(got.prompt_logprobs.size(), expected.size());
    }
    for (size_t i = 0; i < got.prompt_logprobs.size(); ++i) {
      ASSERT_EQ(got.prompt_logprobs[i].token, expected[i].token);
      ASSERT_EQ(got.prompt_logprobs[i].logprob, expected[i].logprob);
      ASSERT_EQ(got.prompt_logprobs[i].top.size(), expected[i].top.size());
    }
    num_scored_ += static_cast<int>(got.prompt_logprobs.size());
  }

  void Compare(const SequenceOutcome& got, const ReferenceSequence& expected, bool resumed) {
    const FinishReason reason = got.end->reason;
    if (reason == FinishReason::kError || reason == FinishReason::kDeadline) {
      // Cut short: a beginning of what would have come.
      ASSERT_LE(got.tokens.size(), expected.tokens.size());
      ASSERT_TRUE(std::equal(got.tokens.begin(), got.tokens.end(), expected.tokens.begin()));
      return;
    }
    ++num_equal_;
    ASSERT_EQ(got.tokens, expected.tokens);
    if (resumed) {
      // What was said before is not said again; SchedulerResumeTest knows where it ends.
      ASSERT_TRUE(expected.text.ends_with(got.text));
      ++num_resumed_;
    } else {
      ASSERT_EQ(got.text, expected.text);
    }
    ASSERT_EQ(Name(reason), Name(expected.end.reason));
    ASSERT_EQ(got.end->matched_stop, expected.end.matched_stop);
    ASSERT_EQ(got.end->matched_token_id, expected.end.matched_token_id);
  }

  std::mt19937_64 random_;
  SchedulerHarness::Options options_;
  SchedulerHarness harness_;
  bool cancels_ = false, pauses_ = false, deadlines_ = false, priorities_ = false;
  int num_requests_ = 0;
  std::map<uint64_t, Request> requests_;
  int num_equal_ = 0;
  int num_scored_ = 0;
  int num_resumed_ = 0;
};

TEST(SchedulerSwarmTest, EqualsTheReferenceWhateverHappens) {
  // Other seeds: --gtest_random_seed=N.
  constexpr uint64_t kSeeds = 1500;
  const uint64_t first_seed = 1 + kSeeds * static_cast<uint64_t>(GTEST_FLAG_GET(random_seed));
  uint64_t preemptions = 0;
  uint64_t hits = 0;
  int equal = 0;
  int scored = 0;
  int resumed = 0;
  for (uint64_t seed = first_seed; seed < first_seed + kSeeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Swarm swarm(seed);
    swarm.Run();
    ASSERT_FALSE(HasFailure());
    preemptions += swarm.preemptions();
    hits += swarm.hits();
    equal += swarm.num_equal();
    scored += swarm.num_scored();
    resumed += swarm.num_resumed();
  }
  std::printf("%lu seeds from %lu: %d sequences equal, %lu preemptions, %lu tokens found\n",
              static_cast<unsigned long>(kSeeds), static_cast<unsigned long>(first_seed), equal,
              static_cast<unsigned long>(preemptions), static_cast<unsigned long>(hits));
  // The swarm reaches what it is for.
  EXPECT_GT(preemptions, 300u);
  EXPECT_GT(hits, 10000u);
  EXPECT_GT(equal, 10000);
  EXPECT_GT(scored, 10000);
  EXPECT_GT(resumed, 3000);
}

}  // namespace
}  // namespace sluice::engine
