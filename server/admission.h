#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "engine/base/clock.h"
#include "engine/base/mutex.h"
#include "engine/request.h"
#include "server/drain_rate.h"
#include "server/rpc_error.h"
#include "server/tenant_policy.h"

namespace sluice::server {

// Decides which Generate calls are let in: bounds on what waits, limits of tenants, deadlines that
// cannot be met. Has no thread and no clock; `now` never goes back. Thread-safe.
//
//   auto ticket = admission.Enter(tenant, body_bytes, now, &error);   // before any work
//   ticket->Reserve(demand, now);                                     // once the prompt is known
//   ticket->Generated(tokens, now);                                   // the first: it has left the
//   queue ticket.reset();                                                   // gives everything
//   back
class Admission {
 public:
  struct Bounds {
    int64_t max_waiting_tokens = 0;  // of prompts whose calls have no token yet; 0: no bound
    int64_t max_waiting_bytes = 0;   // of their messages; 0: no bound
  };

  // What a call will take, and the state of the engines that it goes to.
  struct Demand {
    int64_t prompt_tokens = 0;
    int64_t positions = 0;       // of KV caches, at most
    int64_t pool_positions = 0;  // of all engines together
    int64_t sequences = 1;
    int priority = 0;     // among the tenant's calls
    int64_t backlog = 0;  // sequences that wait in all engines
    std::optional<engine::Time> deadline;
  };

  // A call that was let in. Gives back what it holds when it is destroyed; the admission outlives
  // it. Not thread-safe by itself.
  class Ticket {
   public:
    ~Ticket();
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

    // Why the call cannot go on, if so. Once.
    std::optional<RpcError> Reserve(const Demand& demand, engine::Time now);
    // An engine took it: its prompt counts. Until then the tenant has the tokens back when the call
    // ends.
    void Accepted();
    // Tokens were made for it.
    void Generated(int64_t tokens, engine::Time now);
    // It ends, with `backlog` sequences still waiting for what it had.
    void Ended(int64_t backlog, engine::Time now);

   private:
    friend class Admission;
    Ticket(Admission* admission, std::string tenant, int64_t bytes)
        : admission_(*admission), tenant_(std::move(tenant)), bytes_(bytes) {}

    Admission& admission_;
    const std::string tenant_;
    const int64_t bytes_;
    int64_t prompt_tokens_ = 0;
    int64_t positions_ = 0;
    int64_t sequences_ = 1;
    int priority_ = 0;
    bool reserved_ = false;
    bool waiting_ = true;
    bool accepted_ = false;
  };

  explicit Admission(const Bounds& bounds) : bounds_(bounds) {}

  // From now on these limits hold; what was let in stays.
  void SetPolicy(std::shared_ptr<const TenantPolicy> policy);
  std::shared_ptr<const TenantPolicy> policy() const;
  // Nobody is let in while memory is short.
  void SetShortOfMemory(bool is_short) { short_of_memory_.store(is_short); }
  bool short_of_memory() const { return short_of_memory_.load(); }

  // Null, and `error` set, when the call is refused.
  std::unique_ptr<Ticket> Enter(const std::string& tenant, int64_t bytes, engine::Time now,
                                RpcError* error);
  // For calls refused for lack of room elsewhere.
  std::chrono::milliseconds RetryDelay() const;

  // By label of a tenant.
  struct Usage {
    int64_t open = 0;
    int64_t reserved_positions = 0;
    uint64_t tokens = 0;   // of prompts that engines took, and generated
    uint64_t refused = 0;  // for its limits
  };
  std::map<std::string, Usage> Read() const;
  int64_t waiting_tokens() const;
  int64_t waiting_bytes() const;

 private:
  // A tenant with calls, or with less than its full bucket.
  struct Tenant {
    int64_t open = 0;
    int64_t positions = 0;
    // Tokens that it may take; below zero after it took more than it knew (generated ones).
    std::optional<double> bucket;  // nothing: full
    engine::Time filled{};
    DrainRate drain;
    std::map<int, int64_t> waiting;  // sequences without a token, by priority
  };
  struct Totals {
    uint64_t tokens = 0;
    uint64_t refused = 0;
  };

  void Refill(Tenant& tenant, const TenantLimits& limits, engine::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Spend(const std::string& name, int64_t tokens, engine::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Count(const std::string& name, int64_t tokens) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  RpcError OverQuota(const std::string& tenant, const std::string& what,
                     std::optional<std::chrono::milliseconds> retry_after)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<RpcError> CheckRate(const std::string& name, double needed, engine::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<RpcError> CheckReserve(const Ticket& ticket, const Demand& demand, engine::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Sequences that will have a place before the call's, about: those of its tenant with its
  // priority or a higher one, and meanwhile other tenants' share by their weights.
  double Ahead(const std::string& name, const Demand& demand) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Release(Ticket& ticket);
  void LeaveQueue(Ticket& ticket) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Bounds bounds_;
  std::atomic<bool> short_of_memory_{false};
  mutable engine::Mutex mutex_;
  std::shared_ptr<const TenantPolicy> policy_ ABSL_GUARDED_BY(mutex_) =
      std::make_shared<TenantPolicy>();
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Totals> totals_ ABSL_GUARDED_BY(mutex_);  // by label
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  DrainRate drain_ ABSL_GUARDED_BY(mutex_);
};

// The most tokens that each sequence of a call may make after its prompt, by the limits of its
// tenant on tokens and KV positions; nothing when it has none. May be below 1: then the prompt
// alone is too much. What the call asks for itself is not looked at.
std::optional<int64_t> MaxTokensOf(const TenantLimits& limits, const engine::Request& request,
                                   int64_t pool_positions);

}  // namespace sluice::server
