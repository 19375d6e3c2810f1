#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/mutex.h"
#include "server/connection_table.h"
#include "server/stream_counts.h"
#include "server/stream_limits.h"

namespace sluice::server {

// Cuts the connections of a port that open and reset more streams than the server can clear away,
// which gRPC 1.51 lets them do until memory ends, and lets those who had one cut wait before the
// next is served. It looks every 10 ms on a thread of its own, as gRPC's are busy then.
// Thread-safe.
class FloodGuard {
 public:
  // Serves a connection, which it is given, that a listening socket took.
  using Serve = std::function<void(int listener, int connection)>;

  // Guards the server of this process that was made last.
  FloodGuard(std::shared_ptr<ConnectionTable> connections, Serve serve);
  ~FloodGuard();  // Stop

  // Serves a new connection that the table has counted, soon or after a while.
  void Take(int listener, int connection);
  // Closes what it has not served yet. Take is not called any more.
  void Stop();

 private:
  // Of a connection that was cut: no other of its address is served for now.
  struct Bar {
    std::string address;
    engine::Time since;
  };
  struct Waiting {
    std::string address;
    engine::Time since;
    int listener;
    int connection;
  };

  void Run();
  void Look(engine::Time now);
  void Cut(const StreamLimits::Verdict& verdict, engine::Time now);
  // Ends the bars of those that are cleared away: not among `counts` any more.
  void LiftBars(const std::vector<StreamCount>& counts, engine::Time now);
  void ServeWaiting(engine::Time now);
  bool IsBarred(const std::string& address) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<ConnectionTable> connections_;
  const Serve serve_;
  StreamCounts counts_;  // of the thread, like the limits
  StreamLimits limits_;
  engine::Mutex mutex_;
  engine::CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<int64_t, Bar> bars_ ABSL_GUARDED_BY(mutex_);  // by id of the connection
  std::vector<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace sluice::server
