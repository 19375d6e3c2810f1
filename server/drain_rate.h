#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "engine/base/clock.h"

namespace sluice::server {

// How fast places are freed when somebody waits for one. Only the time between two ends with a
// backlog in between counts: a server with nothing to do ends nothing, and is not slow. Not
// thread-safe.
class DrainRate {
 public:
  // A call has ended; `backlog`: those that wait at this moment.
  void Ended(engine::Time now, int64_t backlog);
  // Seconds between two ends; nothing while none was measured.
  std::optional<double> interval() const { return interval_; }
  // When who is refused now should try again: 20 ms to 30 s.
  std::chrono::milliseconds RetryDelay() const;

 private:
  std::optional<engine::Time> last_end_;  // with a backlog since
  std::optional<double> interval_;        // smoothed
};

// As a delay of a retry: rounded up, 20 ms to 30 s.
std::chrono::milliseconds RetryAfter(double seconds);

}  // namespace sluice::server
