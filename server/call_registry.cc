#include "server/call_registry.h"

#include <cstdio>
#include <random>
#include <utility>

#include "engine/base/status.h"

namespace sluice::server {
namespace {

uint64_t RandomBits() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

}  // namespace

CallRegistry::CallRegistry(int max_calls, int max_of_peer)
    : max_calls_(static_cast<size_t>(max_calls)),
      max_of_peer_(max_of_peer),
      name_base_(RandomBits()) {}

absl::StatusOr<engine::RequestHandle> CallRegistry::Open(std::shared_ptr<Call> call,
                                                         const std::string& peer) {
  engine::MutexLock lock(mutex_);
  if (calls_.size() >= max_calls_) {
    return engine::ResourceExhausted("too many open calls: at most " + std::to_string(max_calls_) +
                                     " in all");
  }
  int& of_peer = of_peer_[peer];
  if (of_peer >= max_of_peer_) {
    return engine::ResourceExhausted("too many open calls of this connection: at most " +
                                     std::to_string(max_of_peer_));
  }
  ++of_peer;
  const engine::RequestHandle handle{++last_handle_};
  calls_.emplace(handle.value, Entry{std::move(call), peer});
  return handle;
}

void CallRegistry::Close(engine::RequestHandle handle) {
  std::shared_ptr<Call> call;  // destroyed after the lock is gone
  engine::MutexLock lock(mutex_);
  const auto it = calls_.find(handle.value);
  if (it == calls_.end()) return;
  const auto peer = of_peer_.find(it->second.peer);
  if (peer != of_peer_.end() && --peer->second == 0) of_peer_.erase(peer);
  call = std::move(it->second.call);
  calls_.erase(it);
  if (calls_.empty()) emptied_.NotifyAll();
}

std::shared_ptr<Call> CallRegistry::Find(engine::RequestHandle handle) const {
  engine::MutexLock lock(mutex_);
  const auto it = calls_.find(handle.value);
  return it == calls_.end() ? nullptr : it->second.call;
}

std::vector<std::shared_ptr<Call>> CallRegistry::All() const {
  engine::MutexLock lock(mutex_);
  std::vector<std::shared_ptr<Call>> all;
  all.reserve(calls_.size());
  for (const auto& [handle, entry] : calls_) all.push_back(entry.call);
  return all;
}

bool CallRegistry::TakeName(const std::string& tenant, std::string* id) {
  engine::MutexLock lock(mutex_);
  if (!id->empty()) return names_.insert(tenant + '\n' + *id).second;
  do {
    char made[48];
    std::snprintf(made, sizeof made, "req-%016llx-%llu",
                  static_cast<unsigned long long>(name_base_),
                  static_cast<unsigned long long>(++last_name_));
    *id = made;
  } while (!names_.insert(tenant + '\n' + *id).second);
  return true;
}

void CallRegistry::ReleaseName(const std::string& tenant, const std::string& id) {
  engine::MutexLock lock(mutex_);
  names_.erase(tenant + '\n' + id);
}

int64_t CallRegistry::size() const {
  engine::MutexLock lock(mutex_);
  return static_cast<int64_t>(calls_.size());
}

bool CallRegistry::WaitUntilEmpty(engine::Time until) {
  engine::MutexLock lock(mutex_);
  while (!calls_.empty()) {
    if (!emptied_.WaitUntil(mutex_, until)) return calls_.empty();
  }
  return true;
}

}  // namespace sluice::server
