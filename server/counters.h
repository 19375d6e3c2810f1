#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>

#include "absl/status/status.h"

#include "engine/base/clock.h"
#include "engine/base/mutex.h"
#include "engine/request.h"
#include "engine/stats.h"

namespace sluice::server {

// What the server itself has counted, for /metrics. All labels come from our own
// constants, never from clients. Thread-safe.
class Counters {
 public:
  Counters();

  // The end of a call of any method; `reason` is kNone but for Generate.
  void CountRequest(std::string_view method, absl::StatusCode code, engine::FinishReason reason,
                    double seconds);
  // A call that was refused before any work, by ErrorInfo reason.
  void CountRejected(std::string_view reason);

  struct RequestKey {
    std::string method, code, finish_reason;
    auto operator<=>(const RequestKey&) const = default;
  };
  struct Snapshot {
    std::map<RequestKey, uint64_t> requests;
    std::map<std::string, uint64_t> rejected;
    engine::StatHistogram::Snapshot generate_duration;  // seconds
  };
  Snapshot Read() const;

 private:
  mutable engine::Mutex mutex_;
  std::map<RequestKey, uint64_t> requests_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> rejected_ ABSL_GUARDED_BY(mutex_);
  engine::StatHistogram generate_duration_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sluice::server
