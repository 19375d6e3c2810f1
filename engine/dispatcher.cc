#include <algorithm>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/engine.h"

namespace sluice::engine {

Dispatcher::Dispatcher(std::vector<std::unique_ptr<Engine>> engines,
                       std::unique_ptr<ChunkMailbox> outbound)
    : outbound_(std::move(outbound)), engines_(std::move(engines)) {
  SLUICE_CHECK(!engines_.empty(), "a model has one engine at least");
}

Dispatcher::~Dispatcher() {
  Shutdown();
  const bool lost =
      std::any_of(engines_.begin(), engines_.end(),
                  [](const std::unique_ptr<Engine>& engine) { return engine->lost(); });
  if (lost) static_cast<void>(outbound_.release());  // its thread may post there yet
}

absl::Status Dispatcher::Dispatch(Request&& request) {
  // Held until the request is routed: a Cancel that comes meanwhile must find the engine that took
  // it, and its end must find the route to forget. Requests at once see what each other load.
  MutexLock lock(mutex_);
  std::vector<std::pair<int64_t, int>> by_load;  // (tokens, engine)
  by_load.reserve(engines_.size());
  for (size_t i = 0; i < engines_.size(); ++i) {
    if (engines_[i]->up()) by_load.emplace_back(engines_[i]->load_tokens(), static_cast<int>(i));
  }
  if (by_load.empty()) return Unavailable("no engine is up");
  std::sort(by_load.begin(), by_load.end());

  const uint64_t handle = request.handle.value;
  absl::Status refused;
  for (const auto& [tokens, index] : by_load) {
    absl::Status status = engines_[static_cast<size_t>(index)]->Submit(std::move(request));
    if (status.ok()) {
      routes_[handle] = index;
      return status;
    }
    if (absl::IsInvalidArgument(status)) return status;
    // A full queue is what a retry can help; it outweighs an engine that drains.
    if (refused.ok() || absl::IsResourceExhausted(status)) refused = std::move(status);
  }
  return refused;
}

Engine* Dispatcher::Route(RequestHandle request) {
  MutexLock lock(mutex_);
  const auto route = routes_.find(request.value);
  return route == routes_.end() ? nullptr : engines_[static_cast<size_t>(route->second)].get();
}

void Dispatcher::Cancel(RequestHandle request, absl::Status status) {
  if (Engine* engine = Route(request)) engine->Cancel(request, std::move(status));
}

void Dispatcher::Pause(RequestHandle request) {
  if (Engine* engine = Route(request)) engine->Pause(request);
}

void Dispatcher::Resume(RequestHandle request) {
  if (Engine* engine = Route(request)) engine->Resume(request);
}

void Dispatcher::Drain() {
  for (const std::unique_ptr<Engine>& engine : engines_) engine->Drain();
}

void Dispatcher::Shutdown() {
  for (const std::unique_ptr<Engine>& engine : engines_) engine->Shutdown();
  outbound_->Close();
}

void Dispatcher::Abandon(int engine, const std::string& why) {
  // First: what a Dispatch that is under way gives it is routed once the lock is free.
  engines_[static_cast<size_t>(engine)]->Abandon();
  std::vector<TokenChunk> ends;
  {
    MutexLock lock(mutex_);
    for (const auto& [request, index] : routes_) {
      if (index != engine) continue;
      TokenChunk& chunk = ends.emplace_back();
      chunk.request = RequestHandle{request};
      chunk.request_end.emplace();
      chunk.request_end->status = Internal(why);
      chunk.request_end->error_reason = "ENGINE_FAULT";
    }
  }
  outbound_->Post(std::move(ends));
}

void Dispatcher::Forget(RequestHandle request) {
  MutexLock lock(mutex_);
  routes_.erase(request.value);
}

bool Dispatcher::any_up() const {
  return std::any_of(engines_.begin(), engines_.end(),
                     [](const std::unique_ptr<Engine>& engine) { return engine->up(); });
}

bool Dispatcher::idle() const {
  return std::all_of(engines_.begin(), engines_.end(),
                     [](const std::unique_ptr<Engine>& engine) { return engine->idle(); });
}

}  // namespace sluice::engine
