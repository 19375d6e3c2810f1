#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/clock.h"
#include "tests/sim/call.h"

namespace sluice::sim {

// What the waiting queue owes: within a tenant the order of priority, then of arrival, but that who
// came first is overtaken by kMostOvertakings later ones at most, and by no fewer when it goes
// before its turn; among tenants turns by tokens, so that nobody who waits is passed over for long.
// Calls whose reader has stalled do not count as waiting.
class Fairness {
 public:
  explicit Fairness(int num_tenants);

  void SetWeight(int tenant, int weight);
  // It came.
  void Arrive(Call* call);
  // It waits for its first place, or for one again.
  void Wait(Call* call);
  // It got a place.
  void Leave(Call* call);
  void End(Call* call);
  bool Waits(const Call& call) const;
  // A sequence of `call` got a place in the turn that began at `began`; `first`: it never had one;
  // `knows_all`: Wait has been called for all that wait. Returns what is wrong with that; empty
  // when nothing is.
  std::string Admit(Call* call, bool first, bool knows_all, engine::Time began);

  static constexpr int kMostOvertakings = 16;  // of the scheduler's queue

 private:
  static constexpr int64_t kQuantum = 512;  // of the scheduler's queue

  struct Tenant {
    int64_t least_weight = 1000, most_weight = 1;
    int64_t most_cost = 1;
    std::set<std::pair<std::pair<int, uint64_t>, Call*>> waiting;
    std::map<uint64_t, Call*> arrivals;  // the same, by handle
    // Open calls of which it is not known here whether a sequence waits.
    std::map<uint64_t, Call*> unclear;
    std::vector<int64_t> lag;  // by other tenant: what it got while this one waited
  };
  static std::pair<std::pair<int, uint64_t>, Call*> KeyOf(Call* call) {
    return {{-call->priority, call->handle.value}, call};
  }

  std::string CountOvertaking(Tenant& tenant, const Call& call, bool knows_all, engine::Time began);

  std::vector<Tenant> tenants_;
};

}  // namespace sluice::sim
