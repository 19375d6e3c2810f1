#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "server/connection_table.h"

namespace sluice::server {

// The HTTP/2 streams of a connection, since it began.
struct StreamCount {
  int64_t id = 0;        // of the connection; never given twice
  std::string peer;      // at its other end, as gRPC writes it
  int64_t begun = 0;     // by the client
  int64_t answered = 0;  // gone, with a status of ours
  int64_t broken = 0;    // gone without: reset by either side
  // Not gone: open, or reset and not yet cleared away. These are what takes memory.
  int64_t held() const { return begun - answered - broken; }
};

// Says which connections break off more streams than the server can clear away. A client that keeps
// to HTTP/2 has as many streams as it was allowed, and those of them that it resets are soon gone;
// one that opens and resets streams without a pause (CVE-2023-44487) holds more and more, which no
// limit of HTTP/2 counts. Of one thread.
class StreamLimits {
 public:
  // Streams that a connection may have open, by HTTP/2's settings.
  static constexpr int kOpenStreams = 256;
  // Above those, about 23 KiB each: of one connection, and of all, when the one with most has to
  // go.
  static constexpr int64_t kMostExcess = 512;
  static constexpr int64_t kMostExcessOfAll = 2048;
  // Of one connection in the long run, and at once.
  static constexpr double kBrokenPerSecond = 500;
  static constexpr double kBrokenAtOnce = 10'000;

  struct Verdict {
    StreamCount count;
    ConnectionTable::Fault fault;
  };
  // `counts`: every connection that is open. Those that have to go, each named once.
  std::vector<Verdict> Judge(const std::vector<StreamCount>& counts, engine::Time now);

 private:
  struct Connection {
    engine::Time seen;
    int64_t broken = 0;             // by then
    double credit = kBrokenAtOnce;  // of streams that it may break off
    bool condemned = false;
  };

  std::map<int64_t, Connection> connections_;  // by id
};

}  // namespace sluice::server
