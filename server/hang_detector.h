#pragma once

#include <optional>

#include "engine/base/clock.h"

namespace sluice::server {

// What the kernel says of a thread.
struct ThreadTimes {
  engine::Duration ran{};     // on a processor; grows once a tick, so every few milliseconds
  engine::Duration waited{};  // ready, without a processor; grows when such a wait ends
  bool ready = false;         // runs or waits for a processor; it does not sleep, nor is it stopped
};
// Of a thread of this process. Nothing where the kernel does not say (no /proc, a kernel or sandbox
// without scheduler accounts) or when there is no such thread. Thread-safe.
std::optional<ThreadTimes> ReadThreadTimes(int thread_id);

// Tells a thread that hangs from one that is not let work: adds up the time without progress in
// which the thread slept, ran, or did anything but wait for a processor. Without the kernel's word
// every moment counts. Has no thread and no clock. Not thread-safe.
class HangDetector {
 public:
  // Of `passed`, since the last look, no more than `most_of_a_look` counts: who looks was stopped
  // or starved himself then.
  explicit HangDetector(engine::Duration most_of_a_look) : most_of_a_look_(most_of_a_look) {}

  // The thread has got on since the last look, or had nothing to do.
  void Moves();
  // It has not; `times` as they are now.
  void StandsStill(engine::Duration passed, const std::optional<ThreadTimes>& times);

  engine::Duration without_progress() const { return without_progress_; }

 private:
  engine::Duration WaitedSince(engine::Duration passed, const ThreadTimes& times);

  const engine::Duration most_of_a_look_;
  engine::Duration without_progress_{};
  std::optional<ThreadTimes> last_;  // at the last look, when it stood still then
  engine::Duration waiting_{};       // seen of a wait that has not ended
};

}  // namespace sluice::server
