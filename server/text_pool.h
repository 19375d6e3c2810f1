#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "engine/base/mutex.h"

namespace sluice::server {

// A few threads for work too long for gRPC's own (which are two on a small machine): parsing big
// requests and tokenising long prompts. What waits is bounded by number and bytes, for each kind
// of job by itself. Thread-safe.
class TextPool {
 public:
  static constexpr size_t kMaxJobs = 64;
  static constexpr size_t kMaxBytes = 16 << 20;

  // Prompts of generations go before the rest.
  enum class Kind { kGenerate, kOther };
  enum class Refusal { kFull, kStopped };

  struct Job {
    size_t bytes = 0;  // that it holds
    // Exactly one of the two is called, once.
    std::function<void()> run;
    std::function<void(Refusal)> refuse;
  };

  explicit TextPool(int num_threads);
  ~TextPool();  // Stop

  // Refuses the job in the caller's thread when too much waits or the pool has stopped.
  void Run(Kind kind, Job job);
  // Refuses what waits, lets what runs end and joins the threads. From one thread at a time.
  void Stop();

 private:
  struct Queue {
    std::deque<Job> jobs;
    size_t bytes = 0;
  };

  void Work();
  // False when nothing waits.
  bool Take(Job* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  engine::Mutex mutex_;
  engine::CondVar not_empty_;
  std::array<Queue, 2> queues_ ABSL_GUARDED_BY(mutex_);  // by Kind
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace sluice::server
