#include "tests/sim/tenant_ledger.h"

#include <algorithm>
#include <cmath>

namespace sluice::sim {

using server::TenantLimits;

namespace {
constexpr double kTolerance = 1e-3;  // tokens
}

TenantLedger::TenantLedger(const server::Admission::Bounds& bounds, int num_tenants)
    : bounds_(bounds), tenants_(static_cast<size_t>(num_tenants)) {}

const TenantLimits& TenantLedger::Limits(int tenant) const {
  return policy_->Of("t" + std::to_string(tenant));
}

void TenantLedger::Refill(Tenant& tenant, const TenantLimits& limits, engine::Time now) {
  if (!tenant.level) return;
  *tenant.level += *limits.tokens_per_second * engine::Seconds(now - tenant.filled);
  tenant.filled = now;
  if (*tenant.level >= limits.burst_tokens) tenant.level.reset();
}

std::optional<std::string> TenantLedger::OverRate(int index, double needed, engine::Time now) {
  const TenantLimits& limits = Limits(index);
  Tenant& tenant = tenants_[static_cast<size_t>(index)];
  if (!limits.tokens_per_second) return "";
  Refill(tenant, limits, now);
  if (!tenant.level) return "";
  needed = std::min(needed, limits.burst_tokens);
  if (std::abs(*tenant.level - needed) < kTolerance) return std::nullopt;
  return *tenant.level < needed ? "QUOTA_EXCEEDED" : "";
}

std::optional<std::string> TenantLedger::Entering(int tenant, int64_t bytes, bool short_of_memory,
                                                  engine::Time now) {
  if (short_of_memory) return "QUEUE_FULL";
  if (bounds_.max_waiting_bytes > 0 && waiting_bytes_ + bytes > bounds_.max_waiting_bytes)
    return "QUEUE_FULL";
  const TenantLimits& limits = Limits(tenant);
  if (limits.max_concurrent && tenants_[static_cast<size_t>(tenant)].open >= *limits.max_concurrent)
    return "QUOTA_EXCEEDED";
  return OverRate(tenant, 1, now);
}

void TenantLedger::Enter(Call& call, int64_t bytes) {
  ++tenants_[static_cast<size_t>(call.tenant)].open;
  call.bytes = bytes;
  call.waits_with_bytes = bytes;
  waiting_bytes_ += bytes;
}

std::optional<std::string> TenantLedger::Reserving(const Call& call,
                                                   const server::Admission::Demand& demand,
                                                   engine::Time now) {
  if (bounds_.max_waiting_tokens > 0 &&
      waiting_tokens_ + demand.prompt_tokens > bounds_.max_waiting_tokens)
    return "QUEUE_FULL";
  const TenantLimits& limits = Limits(call.tenant);
  const auto share =
      static_cast<int64_t>(limits.kv_share * static_cast<double>(demand.pool_positions));
  if (limits.kv_share < 1 &&
      tenants_[static_cast<size_t>(call.tenant)].positions + demand.positions > share)
    return "QUOTA_EXCEEDED";
  return OverRate(call.tenant, static_cast<double>(demand.prompt_tokens), now);
}

void TenantLedger::Spend(int index, int64_t tokens, engine::Time now) {
  const TenantLimits& limits = Limits(index);
  if (!limits.tokens_per_second) return;
  Tenant& tenant = tenants_[static_cast<size_t>(index)];
  Refill(tenant, limits, now);
  if (!tenant.level) {
    tenant.level = limits.burst_tokens;
    tenant.filled = now;
  }
  *tenant.level -= static_cast<double>(tokens);
}

void TenantLedger::Reserve(Call& call, const server::Admission::Demand& demand, engine::Time now) {
  call.positions = demand.positions;
  call.waits_with_tokens = demand.prompt_tokens;
  waiting_tokens_ += demand.prompt_tokens;
  tenants_[static_cast<size_t>(call.tenant)].positions += demand.positions;
  call.charged = demand.prompt_tokens;
  Spend(call.tenant, call.charged, now);
}

void TenantLedger::LeaveQueue(Call& call) {
  waiting_tokens_ -= std::exchange(call.waits_with_tokens, 0);
  waiting_bytes_ -= std::exchange(call.waits_with_bytes, 0);
}

void TenantLedger::Generated(Call& call, int64_t tokens, engine::Time now) {
  LeaveQueue(call);
  Spend(call.tenant, tokens, now);
}

void TenantLedger::Leave(Call& call) {
  LeaveQueue(call);
  Tenant& tenant = tenants_[static_cast<size_t>(call.tenant)];
  tenant.positions -= call.positions;
  if (!call.submitted && tenant.level) *tenant.level += static_cast<double>(call.charged);
  const TenantLimits& limits = Limits(call.tenant);
  const bool limited = limits.tokens_per_second || limits.max_concurrent || limits.kv_share < 1;
  // A tenant without limits and without calls is not remembered.
  if (--tenant.open == 0 && !limited) tenant = Tenant{};
}

std::string TenantLedger::Compare(const server::Admission& admission) const {
  const auto differ = [](const char* what, int64_t has, int64_t should) {
    return std::string("admission counts ") + std::to_string(has) + " " + what + " for " +
           std::to_string(should);
  };
  if (admission.waiting_tokens() != waiting_tokens_)
    return differ("waiting tokens", admission.waiting_tokens(), waiting_tokens_);
  if (admission.waiting_bytes() != waiting_bytes_)
    return differ("waiting bytes", admission.waiting_bytes(), waiting_bytes_);
  int64_t open = 0, positions = 0;
  for (const auto& [label, usage] : admission.Read()) {
    open += usage.open;
    positions += usage.reserved_positions;
  }
  for (const Tenant& tenant : tenants_) {
    open -= tenant.open;
    positions -= tenant.positions;
  }
  if (open != 0) return differ("more open calls", open, 0);
  if (positions != 0) return differ("more reserved positions", positions, 0);
  return "";
}

}  // namespace sluice::sim
