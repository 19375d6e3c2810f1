#include "server/text_pool.h"

#include <utility>

namespace sluice::server {

TextPool::TextPool(int num_threads) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Work(); });
}

TextPool::~TextPool() { Stop(); }

void TextPool::Run(std::function<void()> job) {
  {
    engine::MutexLock lock(mutex_);
    if (!stopped_) {
      jobs_.push_back(std::move(job));
      not_empty_.NotifyOne();
      return;
    }
  }
  job();
}

void TextPool::Stop() {
  {
    engine::MutexLock lock(mutex_);
    stopped_ = true;
    not_empty_.NotifyAll();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void TextPool::Work() {
  while (true) {
    std::function<void()> job;
    {
      engine::MutexLock lock(mutex_);
      while (jobs_.empty() && !stopped_) not_empty_.Wait(mutex_);
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

}  // namespace sluice::server
