#pragma once

#include <functional>
#include <thread>

#include "engine/base/mutex.h"

namespace sluice::cli {

// Takes SIGINT and SIGTERM away from the process and acts on them in a thread of its own, where any
// function may be called. The first one calls the armed action, or ends the process with
// 128 + signal when there is none; a second one ends the process at once with 128 + signal.
// Construct it before any other thread is started: threads inherit the signal mask. Thread-safe.
class SignalWatcher {
 public:
  SignalWatcher();
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

  // What the first signal does from now on. A signal that came before stays counted: the action is
  // called at once then.
  void Arm(std::function<void()> action);
  // Every signal, not the first alone, calls `action` with its number from now on and is not
  // counted: for a program that goes on after Ctrl-C.
  void ArmEach(std::function<void(int signal_number)> action);
  // The first signal does nothing but be counted. Returns after a running action has ended.
  void Disarm();
  // Number of the first signal that came; 0: none.
  int first_signal() const;

 private:
  void Watch();
  void Take(int signal_number);

  int signal_fd_ = -1;
  int stop_fd_ = -1;
  mutable engine::Mutex mutex_;
  std::function<void()> action_ ABSL_GUARDED_BY(mutex_);
  std::function<void(int)> each_action_ ABSL_GUARDED_BY(mutex_);
  bool exits_unarmed_ ABSL_GUARDED_BY(mutex_) = true;
  int first_signal_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread thread_;
};

}  // namespace sluice::cli
