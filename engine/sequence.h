#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/ids.h"
#include "engine/kv/page_pool.h"
#include "engine/kv/page_size.h"
#include "engine/kv/page_table.h"
#include "engine/live_request.h"
#include "engine/request.h"
#include "engine/sequence_output.h"
#include "engine/step_plan.h"

namespace sluice::engine {

// One continuation of a prompt, and how far it has been computed. Owned by the scheduler; engine
// thread only.
//
// Positions [0, committed) have their keys and values in the pages; the next `in_flight` ones are
// being computed by steps whose outcome is not known yet; tokens are known up to `num_known`. What
// is left to compute, `num_remaining`, is a prompt, a recomputation or the one token of a decode:
// nothing tells them apart.
class Sequence {
 public:
  enum class State : uint8_t {
    kWaiting,  // in the queue: never planned, or preempted; holds nothing
    kRunning,  // has a slot and pages
    kEnded     // a zombie: holds them until what is in flight has been waited for
  };

  Sequence(SequenceId id, LiveRequest* request, int index, int max_context, PagePool* pool,
           std::shared_ptr<const Tokenizer> tokenizer);

  SequenceId id() const { return id_; }
  int index() const { return index_; }
  int32_t priority() const { return priority_; }
  // Makes it come before all that are not promoted, for good. Not while it runs or waits: its place
  // there is by its priority.
  void Promote() { priority_ = std::numeric_limits<int32_t>::max(); }
  LiveRequest& request() { return *request_; }
  State state() const { return state_; }
  bool paused() const { return request_->paused; }
  SequenceOutput& output() { return output_; }
  const PageTable& pages() const { return pages_; }
  SlotId slot() const { return slot_; }

  int num_known() const { return num_prompt_ + static_cast<int>(generated_.size()); }
  int num_prompt() const { return num_prompt_; }
  int committed() const { return committed_; }
  int next_position() const { return committed_ + in_flight_; }
  int rows_in_flight() const { return rows_in_flight_; }
  // Tokens that could be planned now; 0 when the token in flight will certainly be the last.
  int num_remaining() const;

  // Finds pages in the prefix cache and leaves some there.
  bool uses_cache() const;
  // While waiting: names the pages that the prefix cache has of its tokens, all but the last
  // token's at most, whose logits are wanted; or gives them back.
  void TakeCachedPages();
  // What a sibling (another sequence of the request) that has computed the prompt can give: so many
  // positions, all but the last known token at most.
  int num_shareable() const { return std::min(num_known() - 1, num_prompt_); }
  // Has computed the prompt and, where it uses the cache, left its pages there. Who took them
  // sooner could come to name a cached page and not the one before it: that may give way to an
  // equal one.
  bool can_share() const {
    return committed_ >= num_prompt_ &&
           (!uses_cache() || num_cached_pages_ >= num_prompt_ / kPageTokens);
  }
  // While waiting: names the full pages of those that `sibling` has, beyond what the cache had; of
  // the page after them AddRow's plan will make a copy.
  void TakePagesOf(const Sequence& sibling);
  void DropPages();
  // Tokens of the prompt that are still to be scored, each with the position before it.
  int num_unscored() const;
  // How many of those a row of the next `num_tokens` positions scores, and how long a row is that
  // scores `most` of them and samples nothing.
  int NumScoredIn(int num_tokens) const;
  int RowThatScores(int most) const;
  // Leaves the queue: takes the slot, and is given the rest of its pages by TakePages before its
  // first row.
  void Admit(SlotId slot, Time now);
  // How the sampler slot must be set with the first row after Admit.
  SlotReset MakeSlotReset() const;
  // Pages for positions [0, positions); false when the pool has too few.
  bool TakePages(int positions, Time now);
  // Back to the queue: returns pages and forgets what was computed. Nothing may be in flight.
  void Preempt(Time now);
  // The sequence is over and its request may be gone; with something in flight it stays, as a
  // zombie.
  void End(Time now);

  // Plans the next `num_tokens` positions as a row of `plan`, whose pages must be there.
  void AddRow(int num_tokens, StepPlan& plan);

  struct Progress {
    int recomputed = 0;     // positions computed before, lost by preemption
    int prompt_tokens = 0;  // positions of the prompt computed for the first time
  };
  // The step with `row` has been computed.
  Progress CommitRow(const StepRow& row);
  // Takes the token sampled for a committed row. Returns the end when the sequence ends with it.
  std::optional<SequenceEnd> Accept(TokenLogprobs&& token, Time now);
  // All positions committed have been seen by a row with finite logits: puts the full pages into
  // the prefix cache. Where the cache has an equal page already, that one takes the place of the
  // own, which is appended to `replaced` with its reference.
  void PublishPages(std::vector<PageId>& replaced);
  // Time from the token before to the one just accepted.
  std::optional<Duration> since_last_token() const { return since_last_token_; }
  // Positions of the prompt computed so far; never falls.
  int prompt_done() const { return std::min(high_water_, num_prompt_); }

  // To be left out of the scheduler's plan number `plan`, so that it can be preempted in the next.
  // (Not of a step: a plan that comes out empty has none.)
  void HoldIn(uint64_t plan) { held_plan_ = plan; }
  bool held_in(uint64_t plan) const { return held_plan_ == plan; }

  // What is wrong with its pages; nothing when all is well.
  std::optional<std::string> Fault() const;

  int preemptions = 0;
  // Times that later ones left the queue before it or took its pages. While it waits the queue
  // counts.
  int overtaken = 0;
  std::optional<Time> cancel_issued;

 private:
  TokenId TokenAt(int position) const;
  // The first position from the next on whose logits score a token.
  int first_scoring() const { return std::max(next_position(), num_scored_); }
  void AddScoring(int num_tokens, StepRow& row, StepPlan& plan) const;
  // The key of page `index`, whose tokens are known and whose forerunners are in the cache; views
  // `tokens`, and the request.
  PrefixKey KeyOf(int index, std::span<TokenId> tokens) const;

  const SequenceId id_;
  LiveRequest* request_;
  const int index_;
  int32_t priority_;
  const int max_context_;
  const int num_prompt_;
  std::vector<TokenId> generated_;
  std::vector<TokenId> banned_until_min_;
  SequenceOutput output_;
  PagePool* const pool_;
  PageTable pages_;
  std::optional<PageId> copied_page_;  // of a sibling, to be copied by the plan of the next row
  int num_cached_pages_ = 0;           // the first pages of the table are in the cache
  mutable std::vector<uint64_t> page_hashes_;  // of the first pages, as far as they were needed
  State state_ = State::kWaiting;
  SlotId slot_{-1};

  int committed_ = 0;
  int in_flight_ = 0;
  int rows_in_flight_ = 0;
  int samples_in_flight_ = 0;
  int num_scored_ = 0;      // positions whose logits have scored the next token of the prompt
  int high_water_ = 0;      // most positions ever committed
  int32_t last_row_ = 0;    // where its last row is in the plan of
  uint64_t last_step_ = 0;  // its last step
  uint64_t held_plan_ = 0;
  std::optional<Time> last_token_;
  std::optional<Duration> since_last_token_;
};

}  // namespace sluice::engine
