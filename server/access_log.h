#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

#include "engine/request.h"
#include "server/trace_context.h"

namespace spdlog {
class logger;
namespace details {
class thread_pool;
}
}  // namespace spdlog

namespace sluice::server {

// One line a Generate call: what it was and how it went, never what was said in it. Lines go
// through a bounded queue to a thread of its own; when the sink is blocked the oldest are dropped.
// Thread-safe.
class AccessLog {
 public:
  // Writes where the default logger writes, at its level, as the logger kAccessLogger. With `json`
  // its messages are members of a JSON object (see ServerOptions::json_logs).
  explicit AccessLog(bool json);
  ~AccessLog();  // writes what waits

  struct Record {
    std::string request_id;
    std::string tenant;
    std::optional<TraceContext> trace;
    std::string peer;
    absl::StatusCode code = absl::StatusCode::kOk;
    std::string reason;  // of ErrorInfo
    engine::FinishReason finish_reason = engine::FinishReason::kNone;
    int64_t prompt_tokens = 0;
    int64_t tokens_sent = 0;
    engine::Usage usage;
    engine::Timing timing;
    double seconds = 0;  // from arrival to the call's end
  };
  // An engine ends the work of a call that was cancelled a step later than the call ends: what it
  // measured is written only as far as it lies within the call.
  void Write(const Record& record);
  // Lines that were dropped, of this and of the program's own log when that is asynchronous.
  uint64_t DroppedLines() const;

 private:
  const bool json_;
  std::shared_ptr<spdlog::details::thread_pool> thread_;
  std::shared_ptr<spdlog::logger> logger_;
};

}  // namespace sluice::server
