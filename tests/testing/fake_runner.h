#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/step_runner.h"
#include "tests/testing/plan_checker.h"

namespace sluice::engine {

// What a token is drawn from: the sequence's tokens so far, as read back from its pages, and the
// sampler slot.
struct FakeContext {
  std::span<const TokenId> tokens;
  const SlotReset& slot;
  int position = 0;  // that the token will take
};

// The token that follows: a hash of everything in `context` in [0, vocab_size), not one of the
// banned ones before the minimum.
TokenId FakeSample(const FakeContext& context, int vocab_size);

// What FakeRunner gives for the tokens of `prompt` but the first when they are scored.
std::vector<TokenLogprobs> FakeScores(std::span<const TokenId> prompt, int num_top);

// A StepRunner without a model. It really stores each row's tokens in pages and reads the whole
// context back through the row's page table, so a wrong table, a stale page, a lost token or an
// uncommitted position changes what is drawn. As keys and values do, what is stored of a position
// depends on all tokens before it: an equal page of another text is noticed. Beyond that it writes
// down every contradiction in a plan (violations()). At depth 1 a step is computed when it is
// waited for, in order, as late as a device could.
class FakeRunner final : public StepRunner {
 public:
  struct Options {
    int depth = 0;
    int num_pages = 16;
    int max_batch = 8;
    int max_step_tokens = 64;
    int vocab_size = 64;
    // In place of FakeSample.
    std::function<TokenId(const FakeContext&)> sample{};
    // False: the logits of this token are not finite. The row's token is -1 then, as a device's is.
    std::function<bool(const FakeContext&)> finite{};
    // The step that fails, counted from 1, and all after it.
    std::optional<uint64_t> fail_at{};
    // What every step says of the device's pause before it.
    std::optional<Duration> idle_before{};
    // Called when a step is waited for: time passes.
    std::function<void()> on_wait{};
  };
  explicit FakeRunner(Options options);

  int depth() const override { return options_.depth; }
  void Launch(const StepPlan& plan) override;
  StepResult Wait(const StepPlan& plan) override;
  void Idle() override { ++idle_calls_; }

  const std::vector<std::string>& violations() const { return violations_; }
  int64_t tokens_computed() const { return tokens_computed_; }
  uint64_t steps() const { return steps_; }
  int idle_calls() const { return idle_calls_; }
  int max_rows() const { return max_rows_; }

 private:
  struct Cell {
    TokenId token = -1;
    uint64_t prefix = 0;  // of all tokens up to this one
  };
  struct Slot {
    SlotReset reset;
    std::vector<TokenId> tokens;  // prompt and output, as the sampler knows them
  };

  void Violation(const StepPlan& plan, const std::string& what);
  RowResult RunRow(const StepPlan& plan, const StepRow& row);
  RowResult Sample(const StepPlan& plan, const StepRow& row, std::span<const TokenId> context);

  const Options options_;
  PlanChecker checker_;
  std::vector<std::array<Cell, 16>> pages_;
  std::vector<std::optional<Slot>> slots_;
  std::map<SequenceId, int> next_positions_;
  std::vector<TokenId> previous_;  // sampled by the last step, by row; -1: none
  std::deque<const StepPlan*> launched_;
  std::vector<std::string> violations_;
  uint64_t steps_ = 0;
  int64_t tokens_computed_ = 0;
  int idle_calls_ = 0;
  int max_rows_ = 0;
};

}  // namespace sluice::engine
