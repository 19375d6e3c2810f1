#include "tests/sim/fairness.h"

#include <algorithm>
#include <utility>

namespace sluice::sim {

Fairness::Fairness(int num_tenants) : tenants_(static_cast<size_t>(num_tenants)) {
  for (Tenant& tenant : tenants_) tenant.lag.assign(tenants_.size(), 0);
}

void Fairness::SetWeight(int index, int weight) {
  Tenant& tenant = tenants_[static_cast<size_t>(index)];
  // Calls keep the weight that they came with, so both hold for a while.
  tenant.least_weight = std::min<int64_t>(tenant.least_weight, weight);
  tenant.most_weight = std::max<int64_t>(tenant.most_weight, weight);
}

void Fairness::Arrive(Call* call) {
  if (call->n > 1 || !call->scored_prompt.empty())
    tenants_[static_cast<size_t>(call->tenant)].unclear.emplace(call->handle.value, call);
  Wait(call);
}

void Fairness::Wait(Call* call) {
  Tenant& tenant = tenants_[static_cast<size_t>(call->tenant)];
  tenant.most_cost = std::max(tenant.most_cost, call->cost);
  if (tenant.waiting.empty()) std::fill(tenant.lag.begin(), tenant.lag.end(), 0);
  tenant.waiting.insert(KeyOf(call));
  tenant.arrivals.emplace(call->handle.value, call);
}

void Fairness::Leave(Call* call) {
  Tenant& tenant = tenants_[static_cast<size_t>(call->tenant)];
  tenant.waiting.erase(KeyOf(call));
  tenant.arrivals.erase(call->handle.value);
}

void Fairness::End(Call* call) {
  Leave(call);
  tenants_[static_cast<size_t>(call->tenant)].unclear.erase(call->handle.value);
}

bool Fairness::Waits(const Call& call) const {
  return tenants_[static_cast<size_t>(call.tenant)].arrivals.contains(call.handle.value);
}

std::string Fairness::CountOvertaking(Tenant& tenant, const Call& call, bool knows_all,
                                      engine::Time began) {
  for (const auto& [handle, other] : tenant.unclear) {
    if (handle < call.handle.value && !tenant.arrivals.contains(handle)) ++other->passed;
  }
  bool is_first = true;  // of those that were ready
  for (const auto& [handle, other] : tenant.arrivals) {
    if (handle >= call.handle.value) break;
    ++other->passed;
    if ((other->paused && other->paused_at <= began) || !std::exchange(is_first, false)) continue;
    if (!tenant.unclear.empty() && tenant.unclear.begin()->first <= handle) continue;
    // An older one that nobody here knows to wait may have been the first.
    if (!knows_all) continue;
    if (++other->overtaken > kMostOvertakings) {
      return "call " + std::to_string(call.handle.value) + " overtook call " +
             std::to_string(handle) + " of its tenant, as " + std::to_string(kMostOvertakings) +
             " have before it";
    }
  }
  return "";
}

std::string Fairness::Admit(Call* call, bool first, bool knows_all, engine::Time began) {
  Tenant& tenant = tenants_[static_cast<size_t>(call->tenant)];
  std::fill(tenant.lag.begin(), tenant.lag.end(), 0);
  if (!first) ++call->passed;
  if (std::string wrong = CountOvertaking(tenant, *call, knows_all, began); !wrong.empty())
    return wrong;
  const auto name = [call] { return "call " + std::to_string(call->handle.value); };
  // How often others passed one that went back to the queue is not known to the turn.
  const bool may_be_promoted = call->passed >= kMostOvertakings || call->preemptions > 0;
  if (!may_be_promoted && (!call->first_planned || call->n == 1)) {
    for (const auto& [key, other] : tenant.waiting) {
      if (key >= KeyOf(call).first) break;
      if (!other->paused)
        return name() + " overtook call " + std::to_string(other->handle.value) + " of its tenant";
    }
  }
  if (!first) return "";  // it has paid
  for (Tenant& other : tenants_) {
    if (&other == &tenant) continue;
    const auto waits = [](const auto& entry) { return !entry.second->paused; };
    int64_t& lag = other.lag[static_cast<size_t>(call->tenant)];
    if (std::none_of(other.waiting.begin(), other.waiting.end(), waits)) {
      lag = 0;
      continue;
    }
    lag += call->cost;
    // The rounds until the other's dearest call is paid, twice for good measure: what was saved
    // before is spent too.
    const int64_t rounds = other.most_cost / (kQuantum * other.least_weight) + 2;
    const int64_t most = 2 * (rounds * kQuantum * tenant.most_weight + tenant.most_cost);
    if (lag > most) {
      return name() + " is served while another tenant waits: " + std::to_string(lag) +
             " tokens of at most " + std::to_string(most);
    }
  }
  return "";
}

}  // namespace sluice::sim
