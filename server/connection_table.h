#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>

#include "engine/base/mutex.h"

namespace sluice::server {

// Counts the connections of a port that are open, and says when one is too many. gRPC tells nobody
// when it closes a connection, but its descriptor then is no longer the same socket: each is known
// by descriptor and inode, and those that are gone are found when somebody asks. Thread-safe.
class ConnectionTable {
 public:
  // Of a connection that is cut: in streams that it holds, or has broken off.
  enum class Fault { kHeld, kBrokenOff };

  // The host at the other end of a connected socket; empty when it is this one (a sidecar's
  // connections are many clients').
  static std::string RemoteHost(int fd);

  // At most `max_all` connections, and `max_of_address` from one address of another machine.
  ConnectionTable(int max_all, int max_of_address);
  ~ConnectionTable();
  ConnectionTable(const ConnectionTable&) = delete;
  ConnectionTable& operator=(const ConnectionTable&) = delete;

  // Counts the connected socket `fd`; false, and not counted, when it is one too many. The caller
  // closes it then.
  bool Add(int fd);
  // Ends the connection whose other end gRPC calls `peer`, without what has come in and waits to be
  // read; its descriptor stays whose it is. The RemoteHost, or nothing when none such is open.
  std::optional<std::string> Cut(const std::string& peer, Fault fault);
  // Open now.
  int64_t size();
  // No more are taken now, wherever they come from.
  bool full();
  uint64_t refused() const { return refused_.load(std::memory_order_relaxed); }
  uint64_t cut(Fault fault) const {
    return (fault == Fault::kHeld ? cut_held_ : cut_broken_).load(std::memory_order_relaxed);
  }

 private:
  struct Connection {
    dev_t device = 0;
    ino_t inode = 0;
    std::string address;  // empty when it is this machine's own
    std::string peer;     // as gRPC writes it
  };

  // Forgets those that are closed.
  void Sweep() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Forget(const Connection& connection) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether `fd` is that connection now.
  static bool Is(int fd, const Connection& connection);
  bool HasRoom(const std::string& address) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t max_all_;
  const int max_of_address_;
  // A descriptor in reserve, for a second one of a connection that is cut, and what it is
  // otherwise.
  const int reserve_;
  const int unused_;
  std::atomic<uint64_t> refused_{0}, cut_held_{0}, cut_broken_{0};
  engine::Mutex mutex_;
  std::unordered_map<int, Connection> connections_ ABSL_GUARDED_BY(mutex_);  // by descriptor
  std::unordered_map<std::string, int> of_address_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sluice::server
