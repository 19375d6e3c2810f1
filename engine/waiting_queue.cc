#include "engine/waiting_queue.h"

#include <algorithm>

#include "engine/base/check.h"

namespace sluice::engine {

void WaitingQueue::Add(const Share& share, SequenceId id, int64_t tokens, Sequence* sequence) {
  SLUICE_CHECK(share.weight >= 1, "a weight of 1 or more");
  const auto tenant = tenants_.try_emplace(share.tenant).first;
  tenant->second.weight = share.weight;
  const Place place = {tenant, {-share.priority, id}};
  SLUICE_CHECK(places_.emplace(id, place).second, "a sequence waits once");
  const Entry entry = {std::max<int64_t>(1, tokens), sequence, share.overtaken};
  tenant->second.arrivals.emplace(id,
                                  &tenant->second.waiting.emplace(place.key, entry).first->second);
  ++num_changes_;
}

void WaitingQueue::Advance() {
  if (turn_ != tenants_.end()) ++turn_;
  if (turn_ == tenants_.end()) turn_ = tenants_.begin();
}

int WaitingQueue::Pay(const Place& place) {
  Tenant& tenant = place.tenant->second;
  const int overtaken = tenant.waiting.find(place.key)->second.overtaken;
  tenant.saved -= tenant.waiting.find(place.key)->second.tokens;
  Erase(place);
  return overtaken;
}

bool WaitingQueue::Remove(SequenceId id) {
  const auto found = places_.find(id);
  if (found == places_.end()) return false;
  Erase(found->second);
  return true;
}

void WaitingQueue::Erase(const Place& place) {
  const Tenants::iterator tenant = place.tenant;
  const Key key = place.key;  // `place` is of what goes
  ++num_changes_;
  tenant->second.waiting.erase(key);
  tenant->second.arrivals.erase(key.second);
  places_.erase(key.second);
  if (!tenant->second.waiting.empty()) return;
  if (turn_ == tenant) Advance();
  const bool was_last = turn_ == tenant;  // the only one there was
  tenants_.erase(tenant);
  if (was_last) turn_ = tenants_.end();
}

}  // namespace sluice::engine
