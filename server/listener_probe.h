#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "engine/base/clock.h"
#include "server/tcp_address.h"

namespace sluice::server {

// Watches that a listener still greets new connections. The kernel completes handshakes even when
// nobody takes them, so what counts is the first byte from the server (the SETTINGS of HTTP/2).
// Never blocks. Not thread-safe.
class ListenerProbe {
 public:
  struct Options {
    std::chrono::milliseconds interval{2000};
    std::chrono::milliseconds patience{5000};  // for a greeting
    int max_failures = 3;                      // in a row
    // Sent first. A server that is spoken to answers also by hanging up.
    std::string hello;
    // Called before it is sent.
    std::function<void()> on_hello = [] {};
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
  // Says hello, or looks for the greeting.
  void Continue(engine::Time now);
  void End(bool greeted, engine::Time now);

  const std::optional<TcpAddress> address_;
  const Options options_;
  int fd_ = -1;  // of the probe under way
  engine::Time began_{};
  engine::Time next_{};
  bool said_hello_ = false;
  bool greeted_once_ = false;
  int failures_ = 0;
};

}  // namespace sluice::server
