#pragma once

#include <sys/socket.h>

#include <chrono>
#include <optional>
#include <string>

#include "engine/base/clock.h"

namespace sluice::server {

// Where `address` ("host:port") leads, with `port` in place of its own. Value.
struct TcpAddress {
  sockaddr_storage address{};
  socklen_t size = 0;

  // Nothing when the host has no address.
  static std::optional<TcpAddress> Resolve(const std::string& address, int port);
  // A socket that connects without blocking; -1 with `errno` set.
  int Connect() const;
};

// Watches that a listener still greets new connections. gRPC 1.51 stops accepting for good when
// one accept fails for lack of file descriptors, while the kernel goes on completing handshakes,
// so what counts is the first byte from the server (the SETTINGS of HTTP/2). Never blocks. Not
// thread-safe.
class ListenerProbe {
 public:
  struct Options {
    std::chrono::milliseconds interval{2000};
    std::chrono::milliseconds patience{5000};  // for a greeting
    int max_failures = 3;                      // in a row
  };

  ListenerProbe(std::optional<TcpAddress> address, Options options)
      : address_(address), options_(options) {}
  ~ListenerProbe();
  ListenerProbe(const ListenerProbe&) = delete;
  ListenerProbe& operator=(const ListenerProbe&) = delete;

  // To be called often. True once the listener counts as dead: it has answered before, and now
  // failed several times in a row. That no socket can be had here tells nothing.
  bool Tick(engine::Time now);

 private:
  void Begin(engine::Time now);
  void End(bool greeted, engine::Time now);

  const std::optional<TcpAddress> address_;
  const Options options_;
  int fd_ = -1;  // of the probe under way
  engine::Time began_{};
  engine::Time next_{};
  bool greeted_once_ = false;
  int failures_ = 0;
};

}  // namespace sluice::server
