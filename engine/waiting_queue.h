#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/ids.h"

namespace sluice::engine {

class Sequence;

// Sequences that wait for a place, shared out fairly between tenants: deficit round robin
// (Shreedhar and Varghese 1995) by tokens. Tenants take turns; with each turn a tenant may spend
// `quantum * weight` tokens more, and its first sequence is next once it has saved as many as that
// costs. So over time tenants that always wait get tokens in proportion to their weights, however
// long their prompts are and however many they send. Within a tenant, and with one tenant alone,
// the order is that of priority, then of arrival, but for this: of those that are ready the one
// that came first is next when kMostOvertakings later ones have been taken before it. So what waits
// does not wait for ever while higher priorities keep coming, and they still get all but one place
// of kMostOvertakings + 1. A tenant with nothing waiting saves nothing. Engine thread only.
//
//   queue.Add({tenant, weight}, sequence_id, tokens, sequence);
//   while (Sequence* next = queue.Next(is_ready)) { ...; queue.Take(id, is_ready); }
class WaitingQueue {
 public:
  struct Share {
    std::string tenant;
    int weight = 1;     // at least 1
    int priority = 0;   // among those of the tenant: higher ones first
    int overtaken = 0;  // so many later ones have been taken before it already
  };
  static constexpr int kMostOvertakings = 16;

  explicit WaitingQueue(int64_t quantum = 512) : quantum_(quantum) {}

  // `tokens`: what taking it costs, at least 1.
  void Add(const Share& share, SequenceId id, int64_t tokens, Sequence* sequence);

  // The sequence whose turn it is among those that `is_ready` takes; null when there is none. A
  // tenant's sequences that are not ready are passed over. Asking again without a change gives the
  // same one.
  template <typename IsReady>
  Sequence* Next(const IsReady& is_ready);
  // Removes a sequence that Next gave, at its tenant's cost. How often it had been overtaken.
  template <typename IsReady>
  int Take(SequenceId id, const IsReady& is_ready);
  // Removes a sequence at nobody's cost; false when it does not wait.
  bool Remove(SequenceId id);

  // Calls visit(sequence, place) for each; `place` is how many of its tenant are before it, by
  // priority and arrival.
  template <typename Visit>
  void ForEach(const Visit& visit) const;
  // Grows with every change.
  uint64_t num_changes() const { return num_changes_; }

  size_t size() const { return places_.size(); }
  bool empty() const { return places_.empty(); }

 private:
  // Ids ascend with arrival.
  using Key = std::pair<int, SequenceId>;  // the priority's negative
  struct Entry {
    int64_t tokens;
    Sequence* sequence;
    int overtaken;
  };
  struct Tenant {
    int64_t weight = 1;
    int64_t saved = 0;
    std::map<Key, Entry> waiting;
    std::map<SequenceId, Entry*> arrivals;  // the same
  };
  using Tenants = std::map<std::string, Tenant>;
  struct Place {
    Tenants::iterator tenant;
    Key key;
  };

  // Its sequence that is next, and the one that came first, of those that are ready.
  template <typename IsReady>
  static Entry* FirstReady(Tenant& tenant, const IsReady& is_ready);
  template <typename IsReady>
  static Entry* OldestReady(Tenant& tenant, const IsReady& is_ready);
  void Advance();
  int Pay(const Place& place);
  void Erase(const Place& place);

  const int64_t quantum_;
  Tenants tenants_;  // those with something waiting
  std::unordered_map<SequenceId, Place> places_;
  Tenants::iterator turn_ = tenants_.end();  // whose it is; end when nobody's yet
  uint64_t num_changes_ = 0;
};

template <typename Visit>
void WaitingQueue::ForEach(const Visit& visit) const {
  for (const auto& [name, tenant] : tenants_) {
    int place = 0;
    for (const auto& [key, entry] : tenant.waiting) visit(*entry.sequence, place++);
  }
}

template <typename IsReady>
WaitingQueue::Entry* WaitingQueue::OldestReady(Tenant& tenant, const IsReady& is_ready) {
  for (const auto& [id, entry] : tenant.arrivals) {
    if (is_ready(*entry->sequence)) return entry;
  }
  return nullptr;
}

template <typename IsReady>
WaitingQueue::Entry* WaitingQueue::FirstReady(Tenant& tenant, const IsReady& is_ready) {
  Entry* oldest = OldestReady(tenant, is_ready);
  if (!oldest || oldest->overtaken >= kMostOvertakings) return oldest;
  for (auto& [key, entry] : tenant.waiting) {
    if (is_ready(*entry.sequence)) return &entry;
  }
  return nullptr;
}

template <typename IsReady>
int WaitingQueue::Take(SequenceId id, const IsReady& is_ready) {
  const auto found = places_.find(id);
  SLUICE_CHECK(found != places_.end(), "what is taken waits");
  Tenant& tenant = found->second.tenant->second;
  Entry* oldest = OldestReady(tenant, is_ready);
  if (oldest && oldest != tenant.arrivals.at(id)) ++oldest->overtaken;
  return Pay(found->second);
}

template <typename IsReady>
Sequence* WaitingQueue::Next(const IsReady& is_ready) {
  if (tenants_.empty()) return nullptr;
  if (turn_ == tenants_.end()) Advance();
  // What the poorest in turns must still save, in whole rounds, is given at once: a round costs
  // the same however many are skipped.
  int64_t rounds = -1;
  for (size_t i = 0; i < tenants_.size(); ++i) {
    Tenant& tenant = turn_->second;
    if (Entry* entry = FirstReady(tenant, is_ready)) {
      if (entry->tokens <= tenant.saved) return entry->sequence;
      const int64_t turn = quantum_ * tenant.weight;
      const int64_t missing = (entry->tokens - tenant.saved + turn - 1) / turn;
      if (rounds < 0 || missing < rounds) rounds = missing;
    }
    Advance();
  }
  if (rounds < 0) return nullptr;
  for (auto& [name, tenant] : tenants_) {
    if (FirstReady(tenant, is_ready)) tenant.saved += rounds * quantum_ * tenant.weight;
  }
  // Whose turn it was has spent it.
  Advance();
  while (true) {
    Entry* entry = FirstReady(turn_->second, is_ready);
    if (entry && entry->tokens <= turn_->second.saved) return entry->sequence;
    Advance();
  }
}

}  // namespace sluice::engine
