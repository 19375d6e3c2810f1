#include "tests/sim/fairness.h"

#include <algorithm>

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

void Fairness::Wait(Call* call) {
  Tenant& tenant = tenants_[static_cast<size_t>(call->tenant)];
  tenant.most_cost = std::max(tenant.most_cost, call->cost);
  if (tenant.waiting.empty()) std::fill(tenant.lag.begin(), tenant.lag.end(), 0);
  tenant.waiting.insert(KeyOf(call));
}

void Fairness::Leave(Call* call) {
  tenants_[static_cast<size_t>(call->tenant)].waiting.erase(KeyOf(call));
}

std::string Fairness::Admit(Call* call, bool first) {
  Tenant& tenant = tenants_[static_cast<size_t>(call->tenant)];
  std::fill(tenant.lag.begin(), tenant.lag.end(), 0);
  const auto name = [call] { return "call " + std::to_string(call->handle.value); };
  if (!call->first_planned || call->n == 1) {
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
