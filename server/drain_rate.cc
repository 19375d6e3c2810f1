#include "server/drain_rate.h"

#include <algorithm>
#include <cmath>

namespace sluice::server {

void DrainRate::Ended(engine::Time now, int64_t backlog) {
  if (last_end_) {
    const double seconds = engine::Seconds(now - *last_end_);
    interval_ = interval_ ? 0.9 * *interval_ + 0.1 * seconds : seconds;
  }
  last_end_.reset();
  if (backlog > 0) last_end_ = now;
}

std::chrono::milliseconds DrainRate::RetryDelay() const {
  return RetryAfter(interval_.value_or(1));
}

std::chrono::milliseconds RetryAfter(double seconds) {
  const double milliseconds = std::ceil(std::clamp(seconds * 1000, 20.0, 30'000.0));
  return std::chrono::milliseconds(static_cast<int64_t>(milliseconds));
}

}  // namespace sluice::server
