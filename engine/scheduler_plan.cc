// The planning half of Scheduler: which rows a step has, and who holds slots and pages.

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/kv/page_table.h"
#include "engine/scheduler.h"

namespace sluice::engine {

void Scheduler::Plan(Time now, StepPlan& plan) {
  plan.slot_resets.clear();
  plan.rows.clear();
  plan.tokens.clear();
  plan.pages.clear();
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
}

void Scheduler::PlanSingles(Time now, StepPlan& plan, int& budget) {
  // MakeRoom takes other sequences than the one at hand out of `running_`: iterators stay valid.
  for (const auto& [id, sequence] : running_) {
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
  for (const auto& [id, sequence] : running_) {
    if (budget == 0) return;
    if (sequence->paused() || sequence->held_in(num_plans_) || sequence->num_remaining() < 2)
      continue;
    // Its pages were taken when it was admitted.
    const int chunk = std::min(budget, sequence->num_remaining());
    sequence->AddRow(chunk, plan);
    budget -= chunk;
  }
}

void Scheduler::PlanAdmissions(Time now, StepPlan& plan, int& budget) {
  const auto is_ready = [](const Sequence& sequence) { return !sequence.paused(); };
  while (budget > 0) {
    Sequence* const next = waiting_.Next(is_ready);
    if (!next) return;
    Sequence& sequence = *next;
    // Who is behind does not overtake: a large prompt would wait for ever.
    if (!MakeAdmissible(sequence, now)) return;
    waiting_.Take(sequence.id());
    Admit(sequence, now, plan);
    const int chunk = std::min(budget, sequence.num_remaining());
    sequence.AddRow(chunk, plan);
    budget -= chunk;
  }
}

bool Scheduler::MakeRoom(const Sequence& requester, Time now) {
  short_of_pages_ = true;
  if (zombie_pages_ > 0) return false;  // they come back with the step in flight
  Sequence* victim = nullptr;
  for (auto place = running_.rbegin(); place != running_.rend(); ++place) {
    Sequence* sequence = place->second;
    if (sequence == &requester) continue;
    if (sequence->paused()) {
      victim = sequence;
      break;
    }
    if (!victim && requester.id() < sequence->id()) victim = sequence;
  }
  if (!victim) return false;
  if (victim->rows_in_flight() > 0) {
    victim->HoldIn(num_plans_);
    return false;
  }
  Preempt(*victim, now);
  return true;
}

bool Scheduler::MakeAdmissible(const Sequence& sequence, Time now) {
  int active = 0;
  int paused_pages = 0;
  std::vector<Sequence*> paused;  // with nothing in flight, oldest first
  for (const auto& [id, running] : running_) {
    if (!running->paused()) {
      ++active;
    } else if (running->rows_in_flight() == 0) {
      paused.push_back(running);
      paused_pages += running->pages().num_pages();
    }
  }
  // One page in reserve for each running sequence, or the newcomer would soon be thrown out again.
  const int needed = PagesFor(sequence.num_known()) + active;
  if (free_slots_.empty() && paused.empty()) return false;
  if (allocator_.num_free() + paused_pages < needed) return false;
  while (free_slots_.empty() || allocator_.num_free() < needed) {
    Preempt(*paused.back(), now);
    paused.pop_back();
  }
  return true;
}

void Scheduler::Admit(Sequence& sequence, Time now, StepPlan& plan) {
  LiveRequest& request = sequence.request();
  waiting_tokens_ -= sequence.num_known();
  running_.emplace(sequence.id(), &sequence);
  sequence.Admit(free_slots_.back());
  free_slots_.pop_back();
  SLUICE_CHECK(sequence.TakePages(sequence.num_known(), now), "pages were counted before");
  plan.slot_resets.push_back(sequence.MakeSlotReset());
  if (request.admitted()) return;
  request.Admit(now);
  stats_->queue_time.Observe(request.queue_seconds());
  TokenChunk chunk = sequence.output().EmptyChunk();
  chunk.admitted = true;
  Send(request, std::move(chunk));
}

void Scheduler::Preempt(Sequence& sequence, Time now) {
  free_slots_.push_back(sequence.slot());
  sequence.Preempt(now);
  running_.erase(sequence.id());
  // It has had its turn.
  waiting_.Add(ShareOf(sequence.request()), sequence.id(), 1, &sequence);
  waiting_tokens_ += sequence.num_known();
  stats_->preemptions.fetch_add(1, std::memory_order_relaxed);
  LiveRequest& request = sequence.request();
  if (!request.request().output.report_progress) return;
  TokenChunk chunk = sequence.output().EmptyChunk();
  chunk.preemptions = sequence.preemptions;
  Send(request, std::move(chunk));
}

}  // namespace sluice::engine
