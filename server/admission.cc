#include "server/admission.h"

#include <algorithm>
#include <cmath>

#include "server/field_limits.h"

namespace sluice::server {
namespace {

std::string Number(int64_t value) { return std::to_string(value); }

int64_t ShareOf(const TenantLimits& limits, int64_t pool_positions) {
  return static_cast<int64_t>(limits.kv_share * static_cast<double>(pool_positions));
}

RpcError Unmeetable(double wait_seconds) {
  RpcError error;
  error.code = absl::StatusCode::kResourceExhausted;
  error.message = "the queue takes about " + FormatNumber(std::ceil(wait_seconds * 10) / 10) +
                  " seconds, longer than the call's deadline";
  error.reason = "DEADLINE_UNMEETABLE";
  return error;
}

}  // namespace

std::optional<int64_t> MaxTokensOf(const TenantLimits& limits, const engine::Request& request,
                                   int64_t pool_positions) {
  std::optional<int64_t> most = limits.max_tokens;
  if (limits.kv_share < 1) {
    const int64_t n = request.sampling.n;
    const int64_t of_prompts = request.max_positions() - n * request.stopping.max_tokens;
    const int64_t room = (ShareOf(limits, pool_positions) - of_prompts) / n;
    most = std::min(most.value_or(room), room);
  }
  return most;
}

// ---------------------------------------------------------------- ticket

Admission::Ticket::~Ticket() { admission_.Release(*this); }

std::optional<RpcError> Admission::Ticket::Reserve(const Demand& demand, engine::Time now) {
  engine::MutexLock lock(admission_.mutex_);
  if (auto error = admission_.CheckReserve(*this, demand, now)) return error;
  prompt_tokens_ = demand.prompt_tokens;
  positions_ = demand.positions;
  sequences_ = demand.sequences;
  priority_ = demand.priority;
  reserved_ = true;
  admission_.waiting_tokens_ += prompt_tokens_;
  Tenant& tenant = admission_.tenants_[tenant_];
  tenant.positions += positions_;
  tenant.waiting[priority_] += sequences_;
  admission_.Spend(tenant_, prompt_tokens_, now);
  return std::nullopt;
}

void Admission::Ticket::Accepted() {
  engine::MutexLock lock(admission_.mutex_);
  accepted_ = true;
  admission_.Count(tenant_, prompt_tokens_);
}

void Admission::Ticket::Generated(int64_t tokens, engine::Time now) {
  engine::MutexLock lock(admission_.mutex_);
  admission_.LeaveQueue(*this);
  admission_.Spend(tenant_, tokens, now);
  admission_.Count(tenant_, tokens);
}

void Admission::Ticket::Ended(int64_t backlog, engine::Time now) {
  engine::MutexLock lock(admission_.mutex_);
  admission_.drain_.Ended(now, backlog, sequences_);
  // A tenant at its limit waits for its own calls, whoever else waits.
  admission_.tenants_[tenant_].drain.Ended(now, 1);
}

// ---------------------------------------------------------------- admission

void Admission::SetPolicy(std::shared_ptr<const TenantPolicy> policy) {
  engine::MutexLock lock(mutex_);
  policy_ = std::move(policy);
  // Labels of tenants that have no entry any more would never end.
  for (auto place = totals_.begin(); place != totals_.end();) {
    const bool known = place->first == "other" || policy_->LabelOf(place->first) == place->first;
    place = known ? std::next(place) : totals_.erase(place);
  }
}

std::shared_ptr<const TenantPolicy> Admission::policy() const {
  engine::MutexLock lock(mutex_);
  return policy_;
}

std::unique_ptr<Admission::Ticket> Admission::Enter(const std::string& tenant, int64_t bytes,
                                                    engine::Time now, RpcError* error) {
  engine::MutexLock lock(mutex_);
  if (short_of_memory_.load()) {
    *error = QueueFull("the server is short of memory", drain_.RetryDelay());
    return nullptr;
  }
  if (bounds_.max_waiting_bytes > 0 && waiting_bytes_ + bytes > bounds_.max_waiting_bytes) {
    std::optional<std::chrono::milliseconds> retry;
    if (bytes <= bounds_.max_waiting_bytes) retry = drain_.RetryDelay();
    *error =
        QueueFull("the calls that wait hold " + Number(waiting_bytes_) + " bytes, " +
                      Number(bytes) + " more would be above " + Number(bounds_.max_waiting_bytes),
                  retry);
    return nullptr;
  }
  const TenantLimits& limits = policy_->Of(tenant);
  const auto known = tenants_.find(tenant);
  const int64_t open = known == tenants_.end() ? 0 : known->second.open;
  if (limits.max_concurrent && open >= *limits.max_concurrent) {
    // With a limit of none no retry helps.
    std::optional<std::chrono::milliseconds> retry;
    if (*limits.max_concurrent > 0) retry = known->second.drain.RetryDelay();
    *error =
        OverQuota(tenant, "at most " + Number(*limits.max_concurrent) + " calls at a time", retry);
    return nullptr;
  }
  if (auto over = CheckRate(tenant, 1, now)) {
    *error = *over;
    return nullptr;
  }
  ++tenants_[tenant].open;
  waiting_bytes_ += bytes;
  return std::unique_ptr<Ticket>(new Ticket(this, tenant, bytes));
}

void Admission::Refill(Tenant& tenant, const TenantLimits& limits, engine::Time now) {
  if (!limits.tokens_per_second) {
    tenant.bucket.reset();
    return;
  }
  if (!tenant.bucket) return;  // full
  *tenant.bucket += *limits.tokens_per_second * engine::Seconds(now - tenant.filled);
  tenant.filled = now;
  if (*tenant.bucket >= limits.burst_tokens) tenant.bucket.reset();
}

std::optional<RpcError> Admission::CheckRate(const std::string& name, double needed,
                                             engine::Time now) {
  const TenantLimits& limits = policy_->Of(name);
  const auto place = tenants_.find(name);
  if (!limits.tokens_per_second || place == tenants_.end()) return std::nullopt;
  Refill(place->second, limits, now);
  // A prompt longer than the burst is let in with a full bucket, and leaves a debt.
  needed = std::min(needed, limits.burst_tokens);
  const std::optional<double> has = place->second.bucket;
  if (!has || *has >= needed) return std::nullopt;
  return OverQuota(name, FormatNumber(*limits.tokens_per_second) + " tokens a second",
                   RetryAfter((needed - *has) / *limits.tokens_per_second));
}

void Admission::Count(const std::string& name, int64_t tokens) {
  totals_[policy_->LabelOf(name)].tokens += static_cast<uint64_t>(tokens);
}

void Admission::Spend(const std::string& name, int64_t tokens, engine::Time now) {
  const TenantLimits& limits = policy_->Of(name);
  if (!limits.tokens_per_second) return;
  Tenant& tenant = tenants_[name];
  Refill(tenant, limits, now);
  if (!tenant.bucket) {
    tenant.bucket = limits.burst_tokens;
    tenant.filled = now;
  }
  *tenant.bucket -= static_cast<double>(tokens);
}

std::optional<RpcError> Admission::CheckReserve(const Ticket& ticket, const Demand& demand,
                                                engine::Time now) {
  if (bounds_.max_waiting_tokens > 0 &&
      waiting_tokens_ + demand.prompt_tokens > bounds_.max_waiting_tokens) {
    const std::string text = "prompts of " + Number(waiting_tokens_) + " tokens wait, " +
                             Number(demand.prompt_tokens) + " more would be above " +
                             Number(bounds_.max_waiting_tokens);
    std::optional<std::chrono::milliseconds> retry;
    if (demand.prompt_tokens <= bounds_.max_waiting_tokens) retry = drain_.RetryDelay();
    return QueueFull(text, retry);
  }
  const TenantLimits& limits = policy_->Of(ticket.tenant_);
  const Tenant& tenant = tenants_[ticket.tenant_];
  const int64_t share = ShareOf(limits, demand.pool_positions);
  if (limits.kv_share < 1 && tenant.positions + demand.positions > share) {
    std::optional<std::chrono::milliseconds> retry;
    if (demand.positions <= share) retry = tenant.drain.RetryDelay();
    return OverQuota(ticket.tenant_,
                     "at most " + Number(share) + " positions of the KV cache, " +
                         Number(tenant.positions) + " are taken and " + Number(demand.positions) +
                         " asked for",
                     retry);
  }
  if (auto error = CheckRate(ticket.tenant_, static_cast<double>(demand.prompt_tokens), now)) {
    return error;
  }
  const std::optional<double> interval = drain_.Interval(now);
  if (demand.deadline && interval) {
    const double wait = *interval * Ahead(ticket.tenant_, demand);
    if (wait > 0 && wait > engine::Seconds(*demand.deadline - now)) return Unmeetable(wait);
  }
  return std::nullopt;
}

double Admission::Ahead(const std::string& name, const Demand& demand) const {
  int64_t own = 0;
  double others = 0;
  const double weight = policy_->Of(name).weight;
  const auto itself = tenants_.find(name);
  if (itself != tenants_.end()) {
    const auto& waiting = itself->second.waiting;
    for (auto place = waiting.lower_bound(demand.priority); place != waiting.end(); ++place) {
      own += place->second;
    }
  }
  for (const auto& [other, tenant] : tenants_) {
    if (other == name) continue;
    int64_t waiting = 0;
    for (const auto& [priority, sequences] : tenant.waiting) waiting += sequences;
    const double turns = static_cast<double>(own + 1) * policy_->Of(other).weight / weight;
    others += std::min(static_cast<double>(waiting), turns);
  }
  // Without a token yet, but no longer waiting for a place, are some more.
  return std::min(static_cast<double>(own) + others, static_cast<double>(demand.backlog));
}

RpcError Admission::OverQuota(const std::string& tenant, const std::string& what,
                              std::optional<std::chrono::milliseconds> retry_after) {
  ++totals_[policy_->LabelOf(tenant)].refused;
  RpcError error;
  error.code = absl::StatusCode::kResourceExhausted;
  error.message = "the tenant's limit is reached: " + what;
  error.reason = "QUOTA_EXCEEDED";
  error.quota = FieldViolation{"tenant:" + tenant, what};
  error.retry_after = retry_after;
  error.pushback = retry_after.has_value();
  return error;
}

void Admission::LeaveQueue(Ticket& ticket) {
  if (!ticket.waiting_) return;
  ticket.waiting_ = false;
  waiting_tokens_ -= ticket.prompt_tokens_;
  waiting_bytes_ -= ticket.bytes_;
  if (!ticket.reserved_) return;
  std::map<int, int64_t>& waiting = tenants_[ticket.tenant_].waiting;
  const auto place = waiting.find(ticket.priority_);
  if ((place->second -= ticket.sequences_) == 0) waiting.erase(place);
}

void Admission::Release(Ticket& ticket) {
  engine::MutexLock lock(mutex_);
  LeaveQueue(ticket);
  const auto place = tenants_.find(ticket.tenant_);
  Tenant& tenant = place->second;
  tenant.positions -= ticket.positions_;
  // Refill cuts off what is more than the burst.
  if (!ticket.accepted_ && tenant.bucket) {
    *tenant.bucket += static_cast<double>(ticket.prompt_tokens_);
  }
  // A tenant with limits is remembered for its bucket and its drain rate.
  const TenantLimits& limits = policy_->Of(ticket.tenant_);
  const bool limited = limits.tokens_per_second || limits.max_concurrent || limits.kv_share < 1;
  if (--tenant.open == 0 && !limited) tenants_.erase(place);
}

std::chrono::milliseconds Admission::RetryDelay() const {
  engine::MutexLock lock(mutex_);
  return drain_.RetryDelay();
}

std::map<std::string, Admission::Usage> Admission::Read() const {
  std::map<std::string, Usage> usage;
  engine::MutexLock lock(mutex_);
  for (const auto& [label, totals] : totals_) {
    usage[label].tokens = totals.tokens;
    usage[label].refused = totals.refused;
  }
  for (const auto& [name, tenant] : tenants_) {
    Usage& one = usage[policy_->LabelOf(name)];
    one.open += tenant.open;
    one.reserved_positions += tenant.positions;
  }
  return usage;
}

int64_t Admission::waiting_tokens() const {
  engine::MutexLock lock(mutex_);
  return waiting_tokens_;
}

int64_t Admission::waiting_bytes() const {
  engine::MutexLock lock(mutex_);
  return waiting_bytes_;
}

}  // namespace sluice::server
