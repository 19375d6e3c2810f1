#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "engine/base/clock.h"

namespace sluice::server {

// How fast places are freed when somebody waits for one. Only the time between two ends with a
// backlog in between counts: a server with nothing to do ends nothing, and is not slow; and after a
// pause what was measured before it no longer holds for a queue. Not thread-safe.
class DrainRate {
 public:
  // A call that had so many places has ended; `backlog`: those that wait at this moment.
  void Ended(engine::Time now, int64_t backlog, int64_t places = 1);
  // Seconds until a place is freed; nothing while none was measured since the last pause of more
  // than kPause.
  std::optional<double> Interval(engine::Time now) const;
  static constexpr std::chrono::seconds kPause{2};
  // When who is refused now should try again: 20 ms to 30 s.
  std::chrono::milliseconds RetryDelay() const;

 private:
  bool PausedUntil(engine::Time now) const;

  std::optional<engine::Time> last_end_;  // with a backlog since
  std::optional<double> interval_;        // smoothed
  engine::Time measured_{};               // when it last was
  bool paused_ = false;                   // since then
};

// As a delay of a retry: rounded up, 20 ms to 30 s.
std::chrono::milliseconds RetryAfter(double seconds);

}  // namespace sluice::server
