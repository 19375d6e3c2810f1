#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/clock.h"
#include "engine/base/mutex.h"
#include "engine/request.h"

namespace sluice::server {

// One open Generate call, as the threads that serve it see it. Thread-safe.
class Call {
 public:
  virtual ~Call() = default;
  // Takes what the engine made; Pump sends it.
  virtual void Add(engine::TokenChunk&& chunk) = 0;
  // Starts the next write, if there is something to write and none is in flight.
  virtual void Pump() = 0;
  // Ends the call when its reader has stalled for too long.
  virtual void CheckStall(engine::Time now) = 0;
  // The server is going away: ends the call UNAVAILABLE, `reason` in its ErrorInfo.
  virtual void Cut(const std::string& reason, const std::string& message) = 0;
};

// The open Generate calls of the process, by handle; the names of those that live. Thread-safe.
class CallRegistry {
 public:
  // At most `max_calls` in all and `max_of_peer` of a connection.
  CallRegistry(int max_calls, int max_of_peer);

  // A handle for a new call; RESOURCE_EXHAUSTED naming the cap that is reached.
  absl::StatusOr<engine::RequestHandle> Open(std::shared_ptr<Call> call, const std::string& peer);
  // The call is over for the client and for the engine.
  void Close(engine::RequestHandle handle);
  std::shared_ptr<Call> Find(engine::RequestHandle handle) const;
  std::vector<std::shared_ptr<Call>> All() const;

  // Takes a request id for a live call of a tenant; makes one when `id` is empty. False when a live
  // call of the tenant has it: what others call theirs, nobody learns.
  bool TakeName(const std::string& tenant, std::string* id);
  void ReleaseName(const std::string& tenant, const std::string& id);

  int64_t size() const;
  // False when `until` passed with calls still open.
  bool WaitUntilEmpty(engine::Time until);

 private:
  struct Entry {
    std::shared_ptr<Call> call;
    std::string peer;
  };

  const size_t max_calls_;
  const int max_of_peer_;
  const uint64_t name_base_;  // random, so that made names differ between runs
  mutable engine::Mutex mutex_;
  engine::CondVar emptied_;
  uint64_t last_handle_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t last_name_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unordered_map<uint64_t, Entry> calls_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<std::string, int> of_peer_ ABSL_GUARDED_BY(mutex_);
  std::unordered_set<std::string> names_ ABSL_GUARDED_BY(mutex_);  // "tenant\nid"
};

}  // namespace sluice::server
