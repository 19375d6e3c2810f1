// The planning half of Scheduler: which rows a step has, and who holds slots and pages.

#include <algorithm>
#include <chrono>
#include <set>
#include <utility>

#include "engine/base/check.h"
#include "engine/kv/page_size.h"
#include "engine/scheduler.h"

namespace sluice::engine {
namespace {

// Of telling places: a long queue that moves fast is not looked through all the time.
constexpr Duration kPlacesInterval = std::chrono::milliseconds(250);

}  // namespace

void Scheduler::Plan(Time now, StepPlan& plan) {
  plan.page_copies.clear();
  plan.slot_resets.clear();
  plan.rows.clear();
  plan.tokens.clear();
  plan.pages.clear();
  plan.scored.clear();
  plan.step = last_step_ + 1;
  ++num_plans_;
  Expire(now);
  short_of_pages_ = false;
  int budget = limits_.max_step_tokens;
  PlanSingles(now, plan, budget);
  PlanChunks(plan, budget);
  // What was just taken from one sequence is not given to the next in the queue.
  if (!short_of_pages_) PlanAdmissions(now, plan, budget);
  if (!plan.empty()) last_step_ = plan.step;
  TellPlaces(now);
}

void Scheduler::TellPlaces(Time now) {
  if (waiting_.num_changes() == told_changes_ || now < next_places_) return;
  told_changes_ = waiting_.num_changes();
  next_places_ = now + kPlacesInterval;
  waiting_.ForEach([&](Sequence& sequence, int place) {
    LiveRequest& request = sequence.request();
    if (!request.request().output.report_progress || request.admitted()) return;
    if (sequence.index() != 0 || place == request.told_place) return;
    request.told_place = place;
    TokenChunk chunk = sequence.output().EmptyChunk();
    chunk.queue_position = place;
    Send(request, std::move(chunk));
  });
}

void Scheduler::PlanSingles(Time now, StepPlan& plan, int& budget) {
  // MakeRoom takes other sequences than the one at hand out of `running_`: iterators stay valid.
  for (const auto& [rank, sequence] : running_) {
    if (budget == 0) return;
    if (sequence->paused() || sequence->held_in(num_plans_) || sequence->num_remaining() != 1)
      continue;
    const int positions = sequence->next_position() + 1;
    bool has_pages = sequence->TakePages(positions, now);
    while (!has_pages && MakeRoom(*sequence, now)) has_pages = sequence->TakePages(positions, now);
    if (!has_pages) {
      short_of_pages_ = true;
      continue;
    }
    sequence->AddRow(1, plan);
    --budget;
  }
}

void Scheduler::PlanChunks(StepPlan& plan, int& budget) {
  for (const auto& [rank, sequence] : running_) {
    if (budget == 0) return;
    if (sequence->paused() || sequence->held_in(num_plans_) || sequence->num_remaining() < 2)
      continue;
    // Its pages were taken when it was admitted.
    const int chunk = ChunkOf(*sequence, budget, plan);
    if (chunk == 0) continue;
    sequence->AddRow(chunk, plan);
    budget -= chunk;
  }
}

void Scheduler::PlanAdmissions(Time now, StepPlan& plan, int& budget) {
  std::set<SequenceId> passed_over;  // they wait for the pages of a sibling
  const auto is_ready = [&](const Sequence& sequence) {
    return !sequence.paused() && !passed_over.contains(sequence.id());
  };
  while (budget > 0) {
    Sequence* const next = waiting_.Next(is_ready);
    if (!next) return;
    Sequence& sequence = *next;
    // The logits of this step go round without it.
    const size_t logits = running_.size() + 1 + plan.scored.size();
    if (!plan.scored.empty() &&
        (sequence.num_unscored() > 0 || logits > static_cast<size_t>(limits_.max_batch))) {
      return;
    }
    sequence.TakeCachedPages();
    const Sibling sibling = FindSibling(sequence);
    if (sibling.ready) sequence.TakePagesOf(*sibling.ready);
    if (sibling.coming) {
      sequence.DropPages();
      passed_over.insert(sequence.id());
      continue;
    }
    // Who is behind does not overtake: a large prompt would wait for ever.
    if (!MakeAdmissible(sequence, now)) return sequence.DropPages();
    sequence.overtaken = waiting_.Take(sequence.id(), is_ready);
    if (sequence.overtaken >= WaitingQueue::kMostOvertakings) sequence.Promote();
    Admit(sequence, now, plan);
    const int chunk = ChunkOf(sequence, budget, plan);
    sequence.AddRow(chunk, plan);
    budget -= chunk;
  }
}

int Scheduler::ChunkOf(const Sequence& sequence, int budget, const StepPlan& plan) const {
  const int chunk = std::min(budget, sequence.num_remaining());
  const int scored = sequence.NumScoredIn(chunk);
  if (scored == 0) return chunk;
  const int left = limits_.max_batch - static_cast<int>(running_.size());
  const int room = std::max(0, left / 2 - static_cast<int>(plan.scored.size()));
  if (scored <= room) return chunk;
  // A row that samples nothing leaves its own place: who scores first always gets on.
  return std::min(chunk, sequence.RowThatScores(room + (plan.scored.empty() ? 1 : 0)));
}

Scheduler::Sibling Scheduler::FindSibling(Sequence& sequence) const {
  Sibling found;
  if (sequence.num_unscored() > 0) return found;
  // A part of a page is computed sooner than it is waited for.
  const bool worth_waiting =
      sequence.num_shareable() / kPageTokens > sequence.committed() / kPageTokens;
  for (const Sequence* sibling : sequence.request().sequences) {
    if (!sibling || sibling->state() != Sequence::State::kRunning) continue;
    if (sibling->can_share()) return {sibling, false};
    found.coming = worth_waiting;
  }
  return found;
}

bool Scheduler::MakeRoom(const Sequence& requester, Time now) {
  short_of_pages_ = true;
  // They come back with the step in flight.
  if (zombie_pages_ > 0 || !replaced_.empty()) return false;
  Sequence* victim = nullptr;
  for (auto place = running_.rbegin(); place != running_.rend(); ++place) {
    Sequence* sequence = place->second;
    if (sequence == &requester) continue;
    if (sequence->paused()) {
      victim = sequence;
      break;
    }
    if (!victim && Rank(requester) < Rank(*sequence)) victim = sequence;
  }
  if (!victim) return false;
  if (victim->rows_in_flight() > 0) {
    victim->HoldIn(num_plans_);
    return false;
  }
  if (victim->id() < requester.id()) ++victim->overtaken;
  Preempt(*victim, now);
  return true;
}

bool Scheduler::MakeAdmissible(const Sequence& sequence, Time now) {
  int active = 0;
  std::vector<Sequence*> paused;  // with nothing in flight, the last goes first
  for (const auto& [rank, running] : running_) {
    if (!running->paused()) {
      ++active;
    } else if (running->rows_in_flight() == 0) {
      paused.push_back(running);
    }
  }
  // One page in reserve for each running sequence, or the newcomer would soon be thrown out again.
  const int needed = PagesFor(sequence.num_known()) - sequence.pages().num_pages() + active;
  if (free_slots_.empty() && paused.empty()) return false;
  if (pool_.num_available() + NumOwned(paused) < needed) return false;
  while (free_slots_.empty() || pool_.num_available() < needed) {
    Preempt(*paused.back(), now);
    paused.pop_back();
  }
  return true;
}

int Scheduler::NumOwned(std::span<Sequence* const> sequences) const {
  std::unordered_map<PageId, int> named;
  int owned = 0;
  for (const Sequence* sequence : sequences) {
    for (const PageId page : sequence->pages().pages())
      owned += ++named[page] == pool_.references(page);
  }
  return owned;
}

void Scheduler::Admit(Sequence& sequence, Time now, StepPlan& plan) {
  LiveRequest& request = sequence.request();
  waiting_tokens_ -= sequence.num_known();
  running_.emplace(Rank(sequence), &sequence);
  sequence.Admit(free_slots_.back(), now);
  free_slots_.pop_back();
  // Beyond the prompt lies what was resumed, or computed before a preemption.
  const int num_found = std::min(sequence.committed(), sequence.num_prompt());
  SLUICE_CHECK(sequence.TakePages(sequence.num_known(), now), "pages were counted before");
  plan.slot_resets.push_back(sequence.MakeSlotReset());
  if (request.admitted()) return;
  request.Admit(now);
  stats_->queue_time.Observe(request.queue_seconds());
  if (sequence.uses_cache()) {
    request.SetCachedPrompt(num_found);
    stats_->prefix_cache_queries.fetch_add(static_cast<uint64_t>(sequence.num_prompt()),
                                           std::memory_order_relaxed);
    stats_->prefix_cache_hits.fetch_add(static_cast<uint64_t>(num_found),
                                        std::memory_order_relaxed);
  }
  TokenChunk chunk = sequence.output().EmptyChunk();
  chunk.admitted = true;
  Send(request, std::move(chunk));
}

void Scheduler::Preempt(Sequence& sequence, Time now) {
  free_slots_.push_back(sequence.slot());
  sequence.Preempt(now);
  running_.erase(Rank(sequence));
  if (sequence.overtaken >= WaitingQueue::kMostOvertakings) sequence.Promote();
  // It has had its turn.
  waiting_.Add(ShareOf(sequence), sequence.id(), 1, &sequence);
  waiting_tokens_ += sequence.num_known();
  stats_->preemptions.fetch_add(1, std::memory_order_relaxed);
  LiveRequest& request = sequence.request();
  if (!request.request().output.report_progress) return;
  TokenChunk chunk = sequence.output().EmptyChunk();
  chunk.preemptions = sequence.preemptions;
  Send(request, std::move(chunk));
}

}  // namespace sluice::engine
