#include "server/hang_detector.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <utility>

#include "server/process_stats.h"

namespace sluice::server {

using engine::Duration;

std::optional<ThreadTimes> ReadThreadTimes(int thread_id) {
  if (thread_id <= 0) return std::nullopt;
  const std::string folder = "/proc/self/task/" + std::to_string(thread_id);
  unsigned long long ran = 0, waited = 0;  // nanoseconds
  const std::string times = ReadProc((folder + "/schedstat").c_str());
  if (std::sscanf(times.c_str(), "%llu %llu", &ran, &waited) != 2) return std::nullopt;
  // A kernel that keeps no accounts says 0.
  if (ran == 0) return std::nullopt;
  const std::string stat = ReadProc((folder + "/stat").c_str());
  const size_t name_end = stat.rfind(") ");
  if (name_end == std::string::npos || name_end + 2 >= stat.size()) return std::nullopt;
  return ThreadTimes{std::chrono::nanoseconds(ran), std::chrono::nanoseconds(waited),
                     stat[name_end + 2] == 'R'};
}

void HangDetector::Moves() {
  without_progress_ = {};
  last_.reset();
  waiting_ = {};
}

void HangDetector::StandsStill(Duration passed, const std::optional<ThreadTimes>& times) {
  const Duration waited = times && last_ ? WaitedSince(passed, *times) : Duration{};
  last_ = times;
  without_progress_ += std::clamp(passed - waited, Duration{}, most_of_a_look_);
}

// The kernel tells of a wait when it has ended. One that goes on shows by a thread that is ready
// and has not run.
Duration HangDetector::WaitedSince(Duration passed, const ThreadTimes& times) {
  const Duration ended = times.waited - last_->waited;
  if (ended == Duration{} && times.ready && times.ran == last_->ran) {
    waiting_ += passed;
    return passed;
  }
  return std::max(ended - std::exchange(waiting_, Duration{}), Duration{});
}

}  // namespace sluice::server
