#include "engine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <string>
#include <thread>
#include <utility>
#include <variant>

#include "engine/base/status.h"
#include "engine/engine_loop.h"

namespace sluice::engine {

class Engine::Impl {
 public:
  Impl(int index, const SchedulerLimits& limits, std::unique_ptr<StepRunner> runner,
       std::shared_ptr<const Tokenizer> tokenizer, ChunkMailbox* outbound)
      : name_("engine " + std::to_string(index)),
        max_queue_(limits.max_queue),
        commands_(static_cast<size_t>(std::max(limits.max_queue, 1))),
        loop_(limits, std::move(runner), std::move(tokenizer), &commands_, outbound, &stats_,
              &load_, &clock_) {
    stats_.up.store(true, std::memory_order_release);
    thread_ = std::thread([this] { Run(); });
  }

  absl::Status Submit(Request&& request);
  void Post(Command&& command) {
    // A refusal means that the loop has stopped: the request has been ended.
    commands_.Post(std::move(command)).IgnoreError();
  }
  void Drain() {
    draining_.store(true, std::memory_order_release);
    Post(DrainCommand{});
  }
  void Shutdown() {
    MutexLock lock(shutdown_mutex_);
    draining_.store(true, std::memory_order_release);
    commands_.Close();
    if (!thread_.joinable()) return;
    if (lost()) {
      thread_.detach();
    } else {
      thread_.join();
    }
  }
  void Abandon() {
    abandoned_.store(true);
    stats_.up.store(false, std::memory_order_release);
    commands_.Close();
  }
  bool abandoned() const { return abandoned_.load(); }
  bool crashed() const { return crashed_.load(); }
  bool lost() const { return abandoned() && !ended_.load(); }
  int thread_id() const { return thread_id_.load(); }

  const EngineStats& stats() const { return stats_; }
  const EngineLoad& load() const { return load_; }

 private:
  // Our code throws nothing; what it calls may, for want of memory above all: streams get a status
  // then, not a broken connection.
  void Run() {
    thread_id_.store(gettid());
    try {
      loop_.Run();
    } catch (const std::exception&) {
      crashed_.store(true);
    }
    ended_.store(true);
  }

  const std::string name_;
  const int64_t max_queue_;
  const SteadyClock clock_;
  CommandMailbox commands_;
  EngineStats stats_;
  EngineLoad load_;
  std::atomic<bool> draining_{false};
  std::atomic<bool> abandoned_{false};
  std::atomic<bool> crashed_{false};
  std::atomic<int> thread_id_{0};
  std::atomic<bool> ended_{false};  // the thread uses nothing of this any more
  EngineLoop loop_;
  Mutex shutdown_mutex_;
  std::thread thread_ ABSL_GUARDED_BY(shutdown_mutex_);
};

absl::Status Engine::Impl::Submit(Request&& request) {
  if (!stats_.up.load(std::memory_order_acquire)) return Unavailable(name_ + " is down");
  if (draining_.load(std::memory_order_acquire)) return Unavailable(name_ + " is draining");
  const int64_t n = request.sampling.n;
  if (n < 1 || n > max_queue_) {
    return InvalidArgument("n: expected 1 to " + std::to_string(max_queue_) +
                           " sequences (the queue's size), got " + std::to_string(n));
  }
  const int64_t tokens = request.num_tokens();
  const int64_t posted = load_.posted_sequences.fetch_add(n, std::memory_order_acq_rel);
  const int64_t waiting = posted + stats_.requests_waiting.load(std::memory_order_acquire);
  if (waiting + n > max_queue_) {
    load_.posted_sequences.fetch_sub(n, std::memory_order_acq_rel);
    return ResourceExhausted(name_ + "'s queue is full: " + std::to_string(waiting) + " of " +
                             std::to_string(max_queue_) + " sequences wait");
  }
  load_.posted_tokens.fetch_add(tokens, std::memory_order_acq_rel);
  Command command = SubmitCommand{std::move(request)};
  const absl::Status status = commands_.Post(std::move(command));
  if (status.ok()) return status;
  load_.posted_tokens.fetch_sub(tokens, std::memory_order_acq_rel);
  load_.posted_sequences.fetch_sub(n, std::memory_order_acq_rel);
  request = std::move(std::get<SubmitCommand>(command).request);
  return status;
}

Engine::Engine(int index, const SchedulerLimits& limits, std::unique_ptr<StepRunner> runner,
               std::shared_ptr<const Tokenizer> tokenizer, ChunkMailbox* outbound)
    : index_(index),
      limits_(limits),
      impl_(std::make_unique<Impl>(index, limits, std::move(runner), std::move(tokenizer),
                                   outbound)) {}

Engine::~Engine() {
  Shutdown();
  // A thread that comes back one day finds everything in its place.
  if (impl_->lost()) static_cast<void>(impl_.release());
}

absl::Status Engine::Submit(Request&& request) { return impl_->Submit(std::move(request)); }

void Engine::Cancel(RequestHandle request, absl::Status status) {
  impl_->Post(CancelCommand{request, std::move(status), SteadyClock().Now()});
}

void Engine::Pause(RequestHandle request) { impl_->Post(PauseCommand{request}); }
void Engine::Resume(RequestHandle request) { impl_->Post(ResumeCommand{request}); }
void Engine::Drain() { impl_->Drain(); }
void Engine::Shutdown() { impl_->Shutdown(); }
void Engine::Abandon() { impl_->Abandon(); }
bool Engine::abandoned() const { return impl_->abandoned(); }
bool Engine::crashed() const { return impl_->crashed(); }
bool Engine::lost() const { return impl_->lost(); }
int Engine::thread_id() const { return impl_->thread_id(); }

const EngineStats& Engine::stats() const { return impl_->stats(); }

int64_t Engine::load_tokens() const {
  const EngineLoad& load = impl_->load();
  return load.posted_tokens.load(std::memory_order_acquire) +
         load.live_tokens.load(std::memory_order_acquire);
}

bool Engine::idle() const {
  // Posted first: what is no longer posted is live already, or has ended.
  const EngineLoad& load = impl_->load();
  return load.posted_sequences.load(std::memory_order_acquire) == 0 &&
         load.live_sequences.load(std::memory_order_acquire) == 0;
}

}  // namespace sluice::engine
