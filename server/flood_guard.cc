#include "server/flood_guard.h"

#include <malloc.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

namespace sluice::server {
namespace {

constexpr std::chrono::milliseconds kLookInterval{10};
// From a cut until the next connection of the address is served, at least: a client that connects
// anew at once has the server for a small part of the time. It is longer, up to the second, for as
// long as what was cut is not cleared away; within the patience of ListenerProbe, which may come
// from the same address.
constexpr std::chrono::milliseconds kLeastWait{1000};
constexpr std::chrono::milliseconds kMostWait{4000};

}  // namespace

FloodGuard::FloodGuard(std::shared_ptr<ConnectionTable> connections, Serve serve)
    : connections_(std::move(connections)), serve_(std::move(serve)) {
  thread_ = std::thread([this] { Run(); });
}

FloodGuard::~FloodGuard() { Stop(); }

void FloodGuard::Stop() {
  if (!thread_.joinable()) return;
  {
    engine::MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
  engine::MutexLock lock(mutex_);
  for (const Waiting& one : waiting_) close(one.connection);
  waiting_.clear();
}

void FloodGuard::Take(int listener, int connection) {
  {
    engine::MutexLock lock(mutex_);
    if (!bars_.empty()) {
      std::string address = ConnectionTable::RemoteHost(connection);
      if (IsBarred(address)) {
        const engine::Time now = std::chrono::steady_clock::now();
        waiting_.push_back({std::move(address), now, listener, connection});
        return;
      }
    }
  }
  serve_(listener, connection);
}

bool FloodGuard::IsBarred(const std::string& address) const {
  return std::any_of(bars_.begin(), bars_.end(),
                     [&](const auto& bar) { return bar.second.address == address; });
}

void FloodGuard::Run() {
  while (true) {
    {
      engine::MutexLock lock(mutex_);
      const engine::Time until = std::chrono::steady_clock::now() + kLookInterval;
      while (!stopping_ && std::chrono::steady_clock::now() < until) {
        changed_.WaitUntil(mutex_, until);
      }
      if (stopping_) return;
    }
    Look(std::chrono::steady_clock::now());
  }
}

void FloodGuard::Look(engine::Time now) {
  bool has_bars = false;
  {
    engine::MutexLock lock(mutex_);
    has_bars = !bars_.empty();
  }
  if (!has_bars && !counts_.Busy()) return;
  const std::vector<StreamCount> counts = counts_.Read();
  for (const StreamLimits::Verdict& verdict : limits_.Judge(counts, now)) Cut(verdict, now);
  if (!has_bars) return;
  LiftBars(counts, now);
  ServeWaiting(now);
}

void FloodGuard::Cut(const StreamLimits::Verdict& verdict, engine::Time now) {
  const StreamCount& count = verdict.count;
  const auto address = connections_->Cut(count.peer, verdict.fault);
  if (!address) return;  // it has closed meanwhile
  {
    engine::MutexLock lock(mutex_);
    bars_[count.id] = {*address, now};
  }
  spdlog::warn("cut the connection of {}: of {} streams {} were broken off, {} not cleared away",
               count.peer, count.begun, count.broken, count.held());
}

void FloodGuard::LiftBars(const std::vector<StreamCount>& counts, engine::Time now) {
  engine::MutexLock lock(mutex_);
  std::erase_if(bars_, [&](const auto& bar) {
    const engine::Duration waited = now - bar.second.since;
    const bool cleared = std::none_of(counts.begin(), counts.end(),
                                      [&](const auto& count) { return count.id == bar.first; });
    return waited >= kMostWait || (cleared && waited >= kLeastWait);
  });
}

void FloodGuard::ServeWaiting(engine::Time now) {
  std::vector<Waiting> ready;
  {
    engine::MutexLock lock(mutex_);
    std::erase_if(waiting_, [&](const Waiting& one) {
      const bool is_ready = now - one.since >= kMostWait || !IsBarred(one.address);
      if (is_ready) ready.push_back(one);
      return is_ready;
    });
  }
  if (ready.empty()) return;
  // Or what one cut connection leaves in the heap of a thread adds to the next one's.
  malloc_trim(0);
  for (const Waiting& one : ready) serve_(one.listener, one.connection);
}

}  // namespace sluice::server
