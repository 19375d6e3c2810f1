#include "server/access_log.h"

#include <spdlog/async.h>
#include <spdlog/async_logger.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "server/rpc_error.h"

namespace sluice::server {
namespace {

constexpr size_t kQueuedLines = 4096;

}  // namespace

AccessLog::AccessLog() : thread_(std::make_shared<spdlog::details::thread_pool>(kQueuedLines, 1)) {
  const auto& sinks = spdlog::default_logger()->sinks();
  logger_ = std::make_shared<spdlog::async_logger>("access", sinks.begin(), sinks.end(), thread_,
                                                   spdlog::async_overflow_policy::overrun_oldest);
  logger_->set_level(spdlog::default_logger()->level());
}

AccessLog::~AccessLog() { logger_->flush(); }

void AccessLog::Write(const Record& record) {
  if (!logger_->should_log(spdlog::level::info)) return;
  const engine::Timing& timing = record.timing;
  const bool had_token = timing.time_to_first_token_seconds <= record.seconds;
  const double first_token = had_token ? timing.time_to_first_token_seconds : 0;
  const double decode =
      had_token ? std::min(timing.decode_seconds, record.seconds - first_token) : 0;
  logger_->info(
      "generate id={} peer={} code={} reason={} finish={} prompt_tokens={} cached_tokens={} "
      "completion_tokens={} sent={} queue_s={:.4f} ttft_s={:.4f} decode_s={:.4f} total_s={:.4f}",
      Quote(record.request_id), record.peer, CodeName(record.code),
      record.reason.empty() ? "-" : record.reason, engine::Name(record.finish_reason),
      record.prompt_tokens, record.usage.cached_prompt_tokens, record.usage.completion_tokens,
      record.tokens_sent, std::min(timing.queue_seconds, record.seconds), first_token, decode,
      record.seconds);
}

}  // namespace sluice::server
