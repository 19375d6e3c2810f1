#include "server/drain_rate.h"

#include <algorithm>
#include <cmath>

namespace sluice::server {

void DrainRate::Ended(engine::Time now, int64_t backlog, int64_t places) {
  paused_ = PausedUntil(now);
  if (last_end_) {
    const double seconds = engine::Seconds(now - *last_end_) / static_cast<double>(places);
    interval_ = interval_ && !paused_ ? 0.9 * *interval_ + 0.1 * seconds : seconds;
    measured_ = now;
    paused_ = false;
  }
  last_end_.reset();
  if (backlog > 0) last_end_ = now;
}

bool DrainRate::PausedUntil(engine::Time now) const {
  return paused_ || (!last_end_ && now - measured_ > kPause);
}

std::optional<double> DrainRate::Interval(engine::Time now) const {
  return PausedUntil(now) ? std::nullopt : interval_;
}

std::chrono::milliseconds DrainRate::RetryDelay() const {
  return RetryAfter(interval_.value_or(1));
}

std::chrono::milliseconds RetryAfter(double seconds) {
  const double milliseconds = std::ceil(std::clamp(seconds * 1000, 20.0, 30'000.0));
  return std::chrono::milliseconds(static_cast<int64_t>(milliseconds));
}

}  // namespace sluice::server
