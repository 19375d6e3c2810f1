#include "server/text_pool.h"

#include <optional>
#include <utility>

namespace sluice::server {

TextPool::TextPool(int num_threads) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Work(); });
}

TextPool::~TextPool() { Stop(); }

void TextPool::Run(Kind kind, Job job) {
  std::optional<Refusal> refusal;
  {
    engine::MutexLock lock(mutex_);
    Queue& queue = queues_[static_cast<size_t>(kind)];
    if (stopped_) {
      refusal = Refusal::kStopped;
    } else if (queue.jobs.size() >= kMaxJobs || queue.bytes + job.bytes > kMaxBytes) {
      refusal = Refusal::kFull;
    } else {
      queue.bytes += job.bytes;
      queue.jobs.push_back(std::move(job));
      not_empty_.NotifyOne();
    }
  }
  if (refusal) job.refuse(*refusal);
}

void TextPool::Stop() {
  std::array<Queue, 2> waiting;
  {
    engine::MutexLock lock(mutex_);
    stopped_ = true;
    std::swap(waiting, queues_);
    not_empty_.NotifyAll();
  }
  for (Queue& queue : waiting) {
    for (Job& job : queue.jobs) job.refuse(Refusal::kStopped);
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

bool TextPool::Take(Job* job) {
  for (Queue& queue : queues_) {
    if (queue.jobs.empty()) continue;
    *job = std::move(queue.jobs.front());
    queue.jobs.pop_front();
    queue.bytes -= job->bytes;
    return true;
  }
  return false;
}

void TextPool::Work() {
  while (true) {
    Job job;
    {
      engine::MutexLock lock(mutex_);
      while (!Take(&job)) {
        if (stopped_) return;
        not_empty_.Wait(mutex_);
      }
    }
    job.run();
  }
}

}  // namespace sluice::server
