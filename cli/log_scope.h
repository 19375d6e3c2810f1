#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "spdlog/formatter.h"

namespace sluice::cli {

enum class LogFormat : uint8_t { kText, kJson };

// One JSON object a line: "time" (RFC 3339, UTC), "level" and "message"; of the logger `members`
// the messages are members of the object themselves. Used by one sink, under its lock.
class JsonFormatter final : public spdlog::formatter {
 public:
  explicit JsonFormatter(std::string members) : members_(std::move(members)) {}

  void format(const spdlog::details::log_msg& line, spdlog::memory_buf_t& out) override;
  std::unique_ptr<spdlog::formatter> clone() const override;

 private:
  const std::string members_;
};

// A line of that format about `message`, at level info and now, with a line break.
std::string JsonLine(std::string_view message);

// While it lives the default logger writes to stderr through a bounded queue: a terminal or pipe
// that does not take its bytes costs log lines, never the time of a thread that serves.
class LogScope {
 public:
  // `level`: one of spdlog's names.
  LogScope(const std::string& level, LogFormat format);
  ~LogScope();
  LogScope(const LogScope&) = delete;
  LogScope& operator=(const LogScope&) = delete;
};

}  // namespace sluice::cli
