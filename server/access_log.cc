#include "server/access_log.h"

#include <spdlog/async.h>
#include <spdlog/async_logger.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "server/rpc_error.h"
#include "server/server.h"

namespace sluice::server {
namespace {

constexpr size_t kQueuedLines = 4096;

// Seconds from arrival, as far as they lie within the call.
struct Times {
  double queue = 0;
  double first_token = 0;  // 0: there was none
  double decode = 0;
};

Times TimesOf(const AccessLog::Record& record) {
  const engine::Timing& timing = record.timing;
  Times times;
  times.queue = std::min(timing.queue_seconds, record.seconds);
  if (timing.time_to_first_token_seconds > record.seconds) return times;
  times.first_token = timing.time_to_first_token_seconds;
  times.decode = std::min(timing.decode_seconds, record.seconds - times.first_token);
  return times;
}

std::string TextOf(const AccessLog::Record& record) {
  const Times times = TimesOf(record);
  const auto or_dash = [](const std::string& text) { return text.empty() ? "-" : text; };
  return fmt::format(
      "generate id={} tenant={} trace={} span={} peer={} code={} reason={} finish={} "
      "prompt_tokens={} cached_tokens={} completion_tokens={} sent={} queue_s={:.4f} ttft_s={:.4f} "
      "decode_s={:.4f} total_s={:.4f}",
      Quote(record.request_id), or_dash(record.tenant), record.trace ? record.trace->trace_id : "-",
      record.trace ? record.trace->span_id : "-", record.peer, CodeName(record.code),
      or_dash(record.reason), engine::Name(record.finish_reason), record.prompt_tokens,
      record.usage.cached_prompt_tokens, record.usage.completion_tokens, record.tokens_sent,
      times.queue, times.first_token, times.decode, record.seconds);
}

std::string MembersOf(const AccessLog::Record& record) {
  const Times times = TimesOf(record);
  const auto microseconds = [](double seconds) { return std::round(seconds * 1e6) / 1e6; };
  nlohmann::ordered_json line = {{"message", "generate"}, {"request_id", record.request_id}};
  if (!record.tenant.empty()) line["tenant"] = record.tenant;
  if (record.trace) {
    line["trace_id"] = record.trace->trace_id;
    line["span_id"] = record.trace->span_id;
    line["trace_sampled"] = record.trace->sampled;
  }
  line["peer"] = record.peer;
  line["code"] = CodeName(record.code);
  if (!record.reason.empty()) line["reason"] = record.reason;
  line["finish_reason"] = engine::Name(record.finish_reason);
  line["prompt_tokens"] = record.prompt_tokens;
  line["cached_tokens"] = record.usage.cached_prompt_tokens;
  line["completion_tokens"] = record.usage.completion_tokens;
  line["sent_tokens"] = record.tokens_sent;
  line["queue_seconds"] = microseconds(times.queue);
  line["first_token_seconds"] = microseconds(times.first_token);
  line["decode_seconds"] = microseconds(times.decode);
  line["total_seconds"] = microseconds(record.seconds);
  const std::string object =
      line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  return object.substr(1, object.size() - 2);
}

}  // namespace

AccessLog::AccessLog(bool json)
    : json_(json), thread_(std::make_shared<spdlog::details::thread_pool>(kQueuedLines, 1)) {
  const auto& sinks = spdlog::default_logger()->sinks();
  logger_ =
      std::make_shared<spdlog::async_logger>(kAccessLogger, sinks.begin(), sinks.end(), thread_,
                                             spdlog::async_overflow_policy::overrun_oldest);
  logger_->set_level(spdlog::default_logger()->level());
}

AccessLog::~AccessLog() { logger_->flush(); }

void AccessLog::Write(const Record& record) {
  if (!logger_->should_log(spdlog::level::info)) return;
  logger_->log(spdlog::level::info, json_ ? MembersOf(record) : TextOf(record));
}

uint64_t AccessLog::DroppedLines() const {
  const auto shared = spdlog::thread_pool();
  return thread_->overrun_counter() + (shared == nullptr ? 0 : shared->overrun_counter());
}

}  // namespace sluice::server
