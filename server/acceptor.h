#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"

#include "server/tcp_address.h"

namespace sluice::server {

// The listening sockets of an address and the thread that takes their connections. gRPC 1.51's own
// listener ends for good at the first accept that fails for lack of a file descriptor; this one
// waits until there is one again. Thread-safe.
class Acceptor {
 public:
  // Given each new connection, which it owns; `listener` stays open while the acceptor runs. Called
  // on the acceptor's thread.
  using Take = std::function<void(int listener, int connection)>;
  // accept4(2) for sockets that do not block: a connection of `listener`, or -1 with `errno` set.
  using Accept = std::function<int(int listener)>;

  // Binds every address that the host of `address` ("host:port", port 0: one free port for all)
  // has here, and listens. [::] takes IPv4 and IPv6, 0.0.0.0 IPv4 only. UNAVAILABLE when a port is
  // taken or no address is this machine's.
  static absl::StatusOr<std::unique_ptr<Acceptor>> Listen(const std::string& address);
  // The same for distinct `places` that all have one port; `name` is for messages.
  static absl::StatusOr<std::unique_ptr<Acceptor>> ListenAt(std::vector<TcpAddress> places,
                                                            const std::string& name);
  ~Acceptor();  // Stop
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

  int port() const { return port_; }
  // Connections wait in the kernel until then. Once.
  void Start(Take take, Accept accept = AcceptFromKernel);
  // Closes the sockets: nothing is taken afterwards. From one thread at a time; idempotent.
  void Stop();
  // A connection could not be taken for lack of file descriptors or memory; the next try is soon.
  bool starved() const { return starved_.load(std::memory_order_relaxed); }

 private:
  Acceptor() = default;
  static int AcceptFromKernel(int listener);
  // Binds `places` in order; the `errno` of a failure that ends it, 0 otherwise.
  int Bind(std::vector<TcpAddress>& places);
  void Run();
  // Takes what waits at `listener`, though not without end. 0, or the `errno` that ended it early.
  int TakeWaiting(int listener);
  // `error`: that of starvation, 0 without.
  void Report(int error);

  std::vector<int> listeners_;
  int wake_ = -1;  // an eventfd, readable once Stop is called
  int port_ = 0;
  Take take_;
  Accept accept_;
  std::atomic<bool> starved_{false};
  std::thread thread_;
};

}  // namespace sluice::server
