#include "server/access_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <sstream>
#include <string>
#include <utility>

namespace sluice::server {
namespace {

using testing::HasSubstr;

// What an access log writes about `record` when the default logger is at `level`.
std::string Lines(const AccessLog::Record& record, spdlog::level::level_enum level) {
  std::ostringstream out;
  auto logger = std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(out));
  logger->set_level(level);
  auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::move(logger));
  {
    AccessLog log;  // writes what waits when it goes
    log.Write(record);
  }
  spdlog::set_default_logger(std::move(before));
  return out.str();
}

TEST(AccessLogTest, WritesOneLineThatNoClientCanBreak) {
  AccessLog::Record record;
  record.request_id = "x\ncode=OK";
  record.peer = "ipv4:127.0.0.1:1";
  record.code = absl::StatusCode::kAborted;
  record.reason = "SLOW_READER";
  record.tokens_sent = 17;
  record.usage.completion_tokens = 20;
  record.seconds = 1.25;
  const std::string line = Lines(record, spdlog::level::info);
  EXPECT_THAT(line, HasSubstr("id=\"x\\x0acode=OK\""));
  EXPECT_THAT(line, HasSubstr("code=ABORTED reason=SLOW_READER"));
  EXPECT_THAT(line, HasSubstr("completion_tokens=20 sent=17"));
  EXPECT_THAT(line, HasSubstr("total_s=1.2500"));
  EXPECT_EQ(line.find('\n'), line.size() - 1);
}

TEST(AccessLogTest, CountsOnlyTimeWithinTheCall) {
  AccessLog::Record record;
  record.seconds = 0.5;
  record.timing.queue_seconds = 0.75;  // the engine saw the cancel later
  EXPECT_THAT(Lines(record, spdlog::level::info),
              HasSubstr("queue_s=0.5000 ttft_s=0.0000 decode_s=0.0000 total_s=0.5000"));
  record.timing.queue_seconds = 0.125;
  record.timing.time_to_first_token_seconds = 0.25;
  record.timing.decode_seconds = 0.625;
  EXPECT_THAT(Lines(record, spdlog::level::info),
              HasSubstr("queue_s=0.1250 ttft_s=0.2500 decode_s=0.2500 total_s=0.5000"));
  record.timing.time_to_first_token_seconds = 0.625;  // a token that was never sent
  EXPECT_THAT(Lines(record, spdlog::level::info),
              HasSubstr("queue_s=0.1250 ttft_s=0.0000 decode_s=0.0000 total_s=0.5000"));
  record.timing = {};
  record.timing.time_to_first_token_seconds = 0.25;
  record.timing.decode_seconds = 0.125;
  EXPECT_THAT(Lines(record, spdlog::level::info),
              HasSubstr("ttft_s=0.2500 decode_s=0.1250 total_s=0.5000"));
}

TEST(AccessLogTest, IsSilentAboveInfo) {
  EXPECT_EQ(Lines(AccessLog::Record(), spdlog::level::warn), "");
}

}  // namespace
}  // namespace sluice::server
