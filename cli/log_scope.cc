#include "cli/log_scope.h"

#include <chrono>
#include <ctime>
#include <utility>

#include "nlohmann/json.hpp"
#include "spdlog/async.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

#include "server/server.h"

namespace sluice::cli {
namespace {

std::string_view View(spdlog::string_view_t text) { return {text.data(), text.size()}; }

void Append(std::string_view text, spdlog::memory_buf_t& out) {
  out.append(text.data(), text.data() + text.size());
}

// "2026-01-31T23:59:59.123456Z".
std::string FormatTime(spdlog::log_clock::time_point time) {
  using std::chrono::microseconds;
  const int64_t micros = std::chrono::duration_cast<microseconds>(time.time_since_epoch()).count();
  const std::time_t seconds = micros / 1'000'000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[40];
  const size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + length, sizeof text - length, ".%06dZ",
                static_cast<int>(micros % 1'000'000));
  return text;
}

}  // namespace

void JsonFormatter::format(const spdlog::details::log_msg& line, spdlog::memory_buf_t& out) {
  Append("{\"time\":\"", out);
  Append(FormatTime(line.time), out);
  Append("\",\"level\":\"", out);
  Append(View(spdlog::level::to_string_view(line.level)), out);
  Append("\",", out);
  if (View(line.logger_name) == members_) {
    Append(View(line.payload), out);
  } else {
    Append("\"message\":", out);
    // Bytes that are no UTF-8 (of a file's name, say) become U+FFFD.
    Append(nlohmann::json(View(line.payload))
               .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
           out);
  }
  Append("}\n", out);
}

std::unique_ptr<spdlog::formatter> JsonFormatter::clone() const {
  return std::make_unique<JsonFormatter>(members_);
}

std::string JsonLine(std::string_view message) {
  spdlog::memory_buf_t line;
  JsonFormatter("").format({"line", spdlog::level::info, {message.data(), message.size()}}, line);
  return {line.data(), line.size()};
}

LogScope::LogScope(const std::string& level, LogFormat format) {
  spdlog::init_thread_pool(/*queue_size=*/8192, /*thread_count=*/1);
  auto logger = std::make_shared<spdlog::async_logger>(
      "sluice", std::make_shared<spdlog::sinks::stderr_color_sink_mt>(), spdlog::thread_pool(),
      spdlog::async_overflow_policy::overrun_oldest);
  if (format == LogFormat::kJson) {
    logger->set_formatter(std::make_unique<JsonFormatter>(server::kAccessLogger));
  } else {
    logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ %v");
  }
  logger->set_level(spdlog::level::from_str(level));
  spdlog::set_default_logger(std::move(logger));
}

LogScope::~LogScope() { spdlog::shutdown(); }

}  // namespace sluice::cli
