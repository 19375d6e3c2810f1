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

TEST(AccessLogTest, IsSilentAboveInfo) {
  EXPECT_EQ(Lines(AccessLog::Record(), spdlog::level::warn), "");
}

}  // namespace
}  // namespace sluice::server
