#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

#include "engine/stats.h"
#include "server/frontend.h"

namespace sluice::server {

// Seconds since the engine's last step while it has work; 0 when it has none.
double StepAge(const engine::EngineStats& stats);

// /metrics over HTTP. The engines' and the server's counters are read when a scrape asks, so
// nothing is pushed from the step loop. Series depend on engines and our own constants only, never
// on what clients send.
class Metrics {
 public:
  // Startup times for startup_seconds; set once before the model is published in the frontend.
  struct Startup {
    std::atomic<double> load_seconds{0};
    std::atomic<double> self_check_seconds{0};
    std::atomic<double> ready_seconds{0};
  };

  // Listens on `address`. UNAVAILABLE naming the address when it cannot be bound.
  static absl::StatusOr<std::unique_ptr<Metrics>> Listen(const std::string& address,
                                                         Frontend* frontend,
                                                         const Startup* startup);
  ~Metrics();
  int port() const;

 private:
  class Source;
  class Listener;
  Metrics();
  std::string address_;
  std::shared_ptr<Source> source_;
  std::unique_ptr<Listener> listener_;
};

}  // namespace sluice::server
