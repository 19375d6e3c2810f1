#include "engine/sequence.h"

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <utility>

#include "engine/base/check.h"

namespace sluice::engine {
namespace {

std::span<const TokenId> EndsOfGeneration(const Tokenizer* tokenizer) {
  if (tokenizer == nullptr) return {};
  return tokenizer->end_of_generation();
}

}  // namespace

Sequence::Sequence(SequenceId id, LiveRequest* request, int index, int max_context, PagePool* pool,
                   std::shared_ptr<const Tokenizer> tokenizer)
    : id_(id),
      request_(request),
      index_(index),
      priority_(request->request().priority),
      max_context_(max_context),
      num_prompt_(static_cast<int>(request->request().prompt.size())),
      generated_(request->request().resume.token_ids),
      banned_until_min_(EndTokens(request->request().stopping, EndsOfGeneration(tokenizer.get()))),
      output_(&request->request(), index, std::move(tokenizer)),
      pool_(pool),
      pages_(pool) {}

TokenId Sequence::TokenAt(int position) const {
  return position < num_prompt_ ? request_->request().prompt[static_cast<size_t>(position)]
                                : generated_[static_cast<size_t>(position - num_prompt_)];
}

int Sequence::num_remaining() const {
  if (samples_in_flight_ == 0) return num_known() - next_position();
  const int tokens = static_cast<int>(generated_.size()) + samples_in_flight_;
  const bool ends =
      tokens >= request_->request().stopping.max_tokens || num_prompt_ + tokens >= max_context_;
  return ends ? 0 : 1;
}

bool Sequence::uses_cache() const {
  return pool_->cache().enabled() && !request_->request().cache.bypass;
}

PrefixKey Sequence::KeyOf(int index, std::span<TokenId> tokens) const {
  const std::string_view domain = request_->request().cache.domain;
  while (static_cast<int>(page_hashes_.size()) <= index) {
    const int first = static_cast<int>(page_hashes_.size()) * kPageTokens;
    for (int i = 0; i < kPageTokens; ++i) tokens[static_cast<size_t>(i)] = TokenAt(first + i);
    page_hashes_.push_back(first == 0 ? pool_->cache().Hash(domain, tokens)
                                      : pool_->cache().Hash(page_hashes_.back(), tokens));
  }
  for (int i = 0; i < kPageTokens; ++i)
    tokens[static_cast<size_t>(i)] = TokenAt(index * kPageTokens + i);
  const PageId parent = index == 0 ? PageId{0} : pages_.page(index - 1);
  return {parent, domain, tokens, page_hashes_[static_cast<size_t>(index)]};
}

int Sequence::num_unscored() const {
  const bool scores = index_ == 0 && request_->request().output.prompt_logprobs >= 0;
  return scores ? num_prompt_ - 1 - num_scored_ : 0;
}

int Sequence::NumScoredIn(int num_tokens) const {
  if (num_unscored() == 0) return 0;
  return std::max(0, std::min(next_position() + num_tokens, num_prompt_ - 1) - first_scoring());
}

int Sequence::RowThatScores(int most) const { return first_scoring() + most - next_position(); }

void Sequence::AddScoring(int num_tokens, StepRow& row, StepPlan& plan) const {
  const int count = NumScoredIn(num_tokens);
  if (count == 0) return;
  row.scoring = RowScoring{.slot = slot_,
                           .offset = first_scoring() - row.first_pos,
                           .first_token = static_cast<int32_t>(plan.scored.size()),
                           .num_tokens = count,
                           .logprobs = request_->request().output.prompt_logprobs};
  for (int i = 1; i <= count; ++i) plan.scored.push_back(TokenAt(first_scoring() + i));
}

void Sequence::TakeCachedPages() {
  if (!uses_cache()) return;
  SLUICE_CHECK(state_ == State::kWaiting && pages_.num_pages() == 0, "who waits holds nothing");
  std::array<TokenId, kPageTokens> tokens;
  // Positions whose logits are wanted are computed.
  const int most = num_unscored() > 0 ? num_scored_ : num_known() - 1;
  for (int index = 0; index < most / kPageTokens; ++index) {
    const std::optional<PageId> page = pool_->Find(KeyOf(index, tokens));
    if (!page) break;
    pages_.Share(*page);
  }
  num_cached_pages_ = pages_.num_pages();
  committed_ = num_cached_pages_ * kPageTokens;
}

void Sequence::TakePagesOf(const Sequence& sibling) {
  const int positions = num_shareable();
  SLUICE_CHECK(sibling.can_share(), "a sibling that has computed and cached them");
  if (committed_ >= positions) return;
  while (pages_.num_pages() < positions / kPageTokens)
    pages_.Share(sibling.pages_.page(pages_.num_pages()));
  num_cached_pages_ =
      std::max(num_cached_pages_, std::min(pages_.num_pages(), sibling.num_cached_pages_));
  if (positions % kPageTokens != 0) copied_page_ = sibling.pages_.page(positions / kPageTokens);
  committed_ = positions;
}

void Sequence::DropPages() {
  pages_.Clear();
  copied_page_.reset();
  num_cached_pages_ = 0;
  committed_ = 0;
}

void Sequence::PublishPages(std::vector<PageId>& replaced) {
  if (!uses_cache()) return;
  std::array<TokenId, kPageTokens> tokens;
  for (; num_cached_pages_ < committed_ / kPageTokens; ++num_cached_pages_) {
    const PageId own = pages_.page(num_cached_pages_);
    const PageId cached = pool_->Publish(KeyOf(num_cached_pages_, tokens), own);
    if (cached != own) replaced.push_back(pages_.Replace(num_cached_pages_, cached));
  }
}

std::optional<std::string> Sequence::Fault() const {
  const auto name = [this] { return "sequence " + std::to_string(id_.value); };
  const int num_pages = pages_.num_pages();
  if (state_ == State::kWaiting && num_pages > 0) return name() + " waits and holds pages";
  if (state_ != State::kRunning) return std::nullopt;
  if (copied_page_) return name() + " waits for a copy of a page that may be another's by now";
  if (num_pages < PagesFor(next_position()) || num_pages > PagesFor(num_known() + 1)) {
    return name() + ": " + std::to_string(num_pages) + " pages for " +
           std::to_string(next_position()) + " positions and " + std::to_string(num_known()) +
           " tokens";
  }
  for (int index = committed_ / kPageTokens; index < num_pages; ++index) {
    const PageId page = pages_.page(index);
    if (pool_->references(page) != 1 || pool_->cache().Holds(page))
      return name() + " writes page " + std::to_string(page.value) + ", which is shared";
  }
  std::array<TokenId, kPageTokens> tokens;
  for (int index = 0; index < num_cached_pages_; ++index) {
    if (pool_->Find(KeyOf(index, tokens)) != pages_.page(index))
      return name() + ": page " + std::to_string(index) + " is not the cached one of its tokens";
  }
  return std::nullopt;
}

void Sequence::Admit(SlotId slot, Time now) {
  SLUICE_CHECK(state_ == State::kWaiting, "only waiting sequences are admitted");
  state_ = State::kRunning;
  slot_ = slot;
  request_->AddPages(pages_.num_pages(), now);
  request_->AddReused(pages_.num_pages());
  high_water_ = std::max(high_water_, committed_);
}

SlotReset Sequence::MakeSlotReset() const {
  const Request& request = request_->request();
  return {.slot = slot_,
          .sampling = request.sampling,
          .sequence_index = index_,
          .min_tokens = request.stopping.min_tokens,
          .banned_until_min = banned_until_min_,
          .prompt = request.prompt,
          .output = generated_};
}

bool Sequence::TakePages(int positions, Time now) {
  const int before = pages_.num_pages();
  if (!pages_.Cover(positions)) return false;
  if (pages_.num_pages() > before) request_->AddPages(pages_.num_pages() - before, now);
  return true;
}

void Sequence::Preempt(Time now) {
  SLUICE_CHECK(state_ == State::kRunning && rows_in_flight_ == 0,
               "only running sequences with nothing in flight are preempted");
  request_->AddPages(-pages_.num_pages(), now);
  DropPages();
  state_ = State::kWaiting;
  slot_ = SlotId{-1};
  ++preemptions;
  request_->AddPreemption();
}

void Sequence::End(Time now) {
  request_->AddPages(-pages_.num_pages(), now);
  state_ = State::kEnded;
  request_ = nullptr;
}

void Sequence::AddRow(int num_tokens, StepPlan& plan) {
  const int begin = next_position();
  const int end = begin + num_tokens;
  SLUICE_CHECK(num_tokens > 0 && num_tokens <= num_remaining(), "a row of tokens that remain");
  StepRow row;
  row.sequence = id_;
  row.first_pos = begin;
  row.first_token = static_cast<int32_t>(plan.tokens.size());
  row.num_tokens = num_tokens;
  if (samples_in_flight_ > 0) {
    SLUICE_CHECK(begin == num_known() && last_step_ + 1 == plan.step,
                 "a token in flight comes from the step before");
    row.from_previous = last_row_;
    plan.tokens.push_back(-1);
  } else {
    for (int position = begin; position < end; ++position) plan.tokens.push_back(TokenAt(position));
  }
  const std::span<const PageId> pages = pages_.Pages(end);
  if (copied_page_) {
    plan.page_copies.push_back({*copied_page_, pages[static_cast<size_t>(begin / kPageTokens)]});
    copied_page_.reset();
  }
  row.first_page = static_cast<int32_t>(plan.pages.size());
  row.num_pages = static_cast<int32_t>(pages.size());
  plan.pages.insert(plan.pages.end(), pages.begin(), pages.end());
  AddScoring(num_tokens, row, plan);
  if (end >= num_known()) {
    row.sampling = RowSampling{slot_, end, request_->request().output.logprobs};
    ++samples_in_flight_;
  }
  in_flight_ += num_tokens;
  ++rows_in_flight_;
  last_row_ = static_cast<int32_t>(plan.rows.size());
  last_step_ = plan.step;
  plan.rows.push_back(row);
}

Sequence::Progress Sequence::CommitRow(const StepRow& row) {
  SLUICE_CHECK(row.first_pos == committed_ && rows_in_flight_ > 0, "rows are committed in order");
  --rows_in_flight_;
  in_flight_ -= row.num_tokens;
  committed_ += row.num_tokens;
  if (row.sampling) --samples_in_flight_;
  if (row.scoring) num_scored_ = row.first_pos + row.scoring->offset + row.scoring->num_tokens;
  Progress progress;
  progress.recomputed = std::max(0, std::min(committed_, high_water_) - row.first_pos);
  progress.prompt_tokens =
      std::max(0, std::min(committed_, num_prompt_) - std::max(row.first_pos, high_water_));
  high_water_ = std::max(high_water_, committed_);
  return progress;
}

std::optional<SequenceEnd> Sequence::Accept(TokenLogprobs&& token, Time now) {
  generated_.push_back(token.token);
  since_last_token_.reset();
  if (last_token_) since_last_token_ = now - *last_token_;
  last_token_ = now;
  std::optional<SequenceEnd> end = output_.Append(std::move(token));
  if (!end && num_known() >= max_context_) {
    output_.Finish();
    end = SequenceEnd{FinishReason::kContext, {}, std::nullopt};
  }
  return end;
}

}  // namespace sluice::engine
