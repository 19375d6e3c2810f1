#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"

namespace sluice::server {

// The listening sockets of an address and the thread that takes their connections. gRPC 1.51's own
// listener ends for good at the first accept that fails for lack of a file descriptor; this one
// waits until there is one again. Thread-safe.
class Acceptor {
 public:
  // Given each new connection, which it owns; `listener` stays open while the acceptor runs. Called
  // on the acceptor's thread.
  using Take = std::function<void(int listener, int connection)>;

  // Binds every address that the host of `address` ("host:port", port 0: one free port for all)
  // has here, and listens. UNAVAILABLE when a port is taken or no address is this machine's.
  static absl::StatusOr<std::unique_ptr<Acceptor>> Listen(const std::string& address);
  ~Acceptor();  // Stop
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

  int port() const { return port_; }
  // Connections wait in the kernel until then. Once.
  void Start(Take take);
  // Closes the sockets: nothing is taken afterwards. From one thread at a time; idempotent.
  void Stop();
  // The last accept failed for lack of file descriptors or memory; the next is tried soon.
  bool starved() const { return starved_.load(std::memory_order_relaxed); }

 private:
  Acceptor() = default;
  void Run();
  // False when there was no descriptor for what waits at `listener`.
  bool TakeAll(int listener);
  void Report(bool starved, int error);

  std::vector<int> listeners_;
  int wake_ = -1;  // an eventfd, readable once Stop is called
  int port_ = 0;
  Take take_;
  std::atomic<bool> starved_{false};
  std::thread thread_;
};

}  // namespace sluice::server
