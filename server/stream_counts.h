#pragma once

#include <cstdint>
#include <vector>

#include "server/stream_limits.h"

namespace sluice::server {

// Reads what gRPC counts of each connection of a server, its accounts for channelz: a stream is
// counted as soon as its first frame is read, however far the threads behind that have fallen, and
// as gone when its memory is. Never waits for those threads. Of one thread.
class StreamCounts {
 public:
  // Of the server of this process that was made last. It gathers such accounts
  // (GRPC_ARG_ENABLE_CHANNELZ); without them it has no connections here.
  StreamCounts();

  // Its connections that are not cleared away yet.
  std::vector<StreamCount> Read();
  // Whether enough calls have begun since the last time for a look at each connection.
  bool Busy() const;

 private:
  int64_t CallsBegun() const;

  int64_t server_ = 0;          // its id in the accounts
  int64_t calls_then_ = 0;      // begun in all, when connections were last looked at
  size_t num_connections_ = 0;  // then
};

}  // namespace sluice::server
