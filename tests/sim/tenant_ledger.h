#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "server/admission.h"
#include "tests/sim/call.h"

namespace sluice::sim {

// What server::Admission has to answer, worked out plainly.
class TenantLedger {
 public:
  TenantLedger(const server::Admission::Bounds& bounds, int num_tenants);

  void SetPolicy(std::shared_ptr<const server::TenantPolicy> policy) { policy_ = policy; }
  const server::TenantLimits& Limits(int tenant) const;

  // The reason of the refusal that is due; empty: none; nothing: too close to tell.
  std::optional<std::string> Entering(int tenant, int64_t bytes, bool short_of_memory,
                                      engine::Time now);
  void Enter(Call& call, int64_t bytes);
  std::optional<std::string> Reserving(const Call& call, const server::Admission::Demand& demand,
                                       engine::Time now);
  void Reserve(Call& call, const server::Admission::Demand& demand, engine::Time now);
  void Generated(Call& call, int64_t tokens, engine::Time now);
  void Leave(Call& call);

  // What is wrong with what `admission` holds; empty when nothing is.
  std::string Compare(const server::Admission& admission) const;

 private:
  struct Tenant {
    int64_t open = 0;
    int64_t positions = 0;
    std::optional<double> level;  // of its bucket; nothing: full
    engine::Time filled{};
  };
  void LeaveQueue(Call& call);
  void Refill(Tenant& tenant, const server::TenantLimits& limits, engine::Time now);
  void Spend(int tenant, int64_t tokens, engine::Time now);
  // As Entering, of the rate alone.
  std::optional<std::string> OverRate(int tenant, double needed, engine::Time now);

  const server::Admission::Bounds bounds_;
  std::shared_ptr<const server::TenantPolicy> policy_;
  std::vector<Tenant> tenants_;
  int64_t waiting_tokens_ = 0;
  int64_t waiting_bytes_ = 0;
};

}  // namespace sluice::sim
