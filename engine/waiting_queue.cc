#include "engine/waiting_queue.h"

#include <algorithm>

#include "engine/base/check.h"

namespace sluice::engine {

void WaitingQueue::Add(const Share& share, SequenceId id, int64_t tokens, Sequence* sequence) {
  SLUICE_CHECK(share.weight >= 1, "a weight of 1 or more");
  const auto tenant = tenants_.try_emplace(share.tenant).first;
  tenant->second.weight = share.weight;
  const bool is_new =
      tenant->second.waiting.emplace(id, Entry{std::max<int64_t>(1, tokens), sequence}).second;
  SLUICE_CHECK(is_new, "a sequence waits once");
  places_.emplace(id, tenant);
}

void WaitingQueue::Advance() {
  if (turn_ != tenants_.end()) ++turn_;
  if (turn_ == tenants_.end()) turn_ = tenants_.begin();
}

void WaitingQueue::Take(SequenceId id) {
  const auto place = places_.find(id);
  SLUICE_CHECK(place != places_.end(), "what is taken waits");
  Tenant& tenant = place->second->second;
  tenant.saved -= tenant.waiting.find(id)->second.tokens;
  Erase(place->second, id);
}

bool WaitingQueue::Remove(SequenceId id) {
  const auto place = places_.find(id);
  if (place == places_.end()) return false;
  Erase(place->second, id);
  return true;
}

void WaitingQueue::Erase(Tenants::iterator tenant, SequenceId id) {
  tenant->second.waiting.erase(id);
  places_.erase(id);
  if (!tenant->second.waiting.empty()) return;
  if (turn_ == tenant) Advance();
  const bool was_last = turn_ == tenant;  // the only one there was
  tenants_.erase(tenant);
  if (was_last) turn_ = tenants_.end();
}

}  // namespace sluice::engine
