#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"

#include "engine/base/mutex.h"

namespace sluice::server {

// Applies files of configuration again when what they hold has changed. What cannot be read or is
// refused changes nothing, is logged once and counted. Contents are compared, not times, so that a
// change within a clock tick is seen and a file written in two halves is taken when it is whole.
// Thread-safe.
class Reloader {
 public:
  struct Source {
    std::string name;                // "auth"; for logs and metrics
    std::vector<std::string> paths;  // read together
    // Takes the contents in the order of `paths`; an error says what is wrong with them.
    std::function<absl::Status(const std::vector<std::string>& contents)> apply;
  };
  struct Counts {
    uint64_t applied = 0;  // the first time included
    uint64_t failed = 0;
  };

  Reloader() = default;
  ~Reloader();  // stops watching
  Reloader(const Reloader&) = delete;
  Reloader& operator=(const Reloader&) = delete;

  // Reads and applies `source` now; its error is the caller's. Before Start.
  absl::Status Add(Source source);
  // Looks for changes once a second from now on.
  void Start();
  // Looks for changes now. By source, OK or what is wrong with what the files hold now.
  std::map<std::string, absl::Status> Check();
  std::map<std::string, Counts> Read() const;

 private:
  struct Watched {
    Source source;
    std::vector<std::string> contents;  // last seen, whether good or bad
    absl::Status status;                // of those
    Counts counts;
  };

  void CheckOne(Watched& watched) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run();

  mutable engine::Mutex mutex_;
  engine::CondVar stop_;
  std::vector<Watched> watched_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace sluice::server
