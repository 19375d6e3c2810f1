#pragma once

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "engine/base/mutex.h"

namespace sluice::server {

// A few threads for work too long for gRPC's own (which are two on a small machine): tokenising
// long prompts. The jobs are bounded by the calls that are open. Thread-safe.
class TextPool {
 public:
  explicit TextPool(int num_threads);
  ~TextPool();  // Stop

  void Run(std::function<void()> job);
  // Runs what waits, then joins the threads. A job given later runs in the caller.
  void Stop();

 private:
  void Work();

  engine::Mutex mutex_;
  engine::CondVar not_empty_;
  std::deque<std::function<void()>> jobs_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace sluice::server
