#include "server/access_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>

namespace sluice::server {
namespace {

using testing::HasSubstr;

// What an access log writes about `record` when the default logger is at `level`.
std::string Lines(const AccessLog::Record& record, spdlog::level::level_enum level,
                  bool json = false) {
  std::ostringstream out;
  auto logger = std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(out));
  logger->set_level(level);
  auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::move(logger));
  {
    AccessLog log(json);  // writes what waits when it goes
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

AccessLog::Record Traced() {
  AccessLog::Record record;
  record.request_id = "r-1";
  record.tenant = "acme";
  record.trace = TraceContext{.trace_id = "4bf92f3577b34da6a3ce929d0e0e4736",
                              .span_id = "00f067aa0ba902b7",
                              .sampled = true};
  record.peer = "ipv4:127.0.0.1:1";
  record.finish_reason = engine::FinishReason::kLength;
  record.prompt_tokens = 3;
  record.tokens_sent = record.usage.completion_tokens = 20;
  record.timing.queue_seconds = 0.125;
  record.timing.time_to_first_token_seconds = 0.25;
  record.timing.decode_seconds = 0.5;
  record.seconds = 0.75;
  return record;
}

TEST(AccessLogTest, SaysWhoseAndOfWhichTraceACallIs) {
  EXPECT_THAT(Lines(Traced(), spdlog::level::info),
              HasSubstr("id=\"r-1\" tenant=acme trace=4bf92f3577b34da6a3ce929d0e0e4736 "
                        "span=00f067aa0ba902b7 peer="));
  EXPECT_THAT(Lines(AccessLog::Record(), spdlog::level::info),
              HasSubstr("id=\"\" tenant=- trace=- span=- peer="));
}

// The pattern of a test's sinks is spdlog's own: the members are what follows the last bracket.
nlohmann::json Members(const AccessLog::Record& record) {
  const std::string line = Lines(record, spdlog::level::info, /*json=*/true);
  EXPECT_THAT(line, HasSubstr("[access] [info] "));
  return nlohmann::json::parse("{" + line.substr(line.rfind("] ") + 2) + "}");
}

TEST(AccessLogTest, WritesMembersOfAJsonObject) {
  EXPECT_EQ(Members(Traced()), nlohmann::json::parse(R"({
    "message": "generate", "request_id": "r-1", "tenant": "acme",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7",
    "trace_sampled": true, "peer": "ipv4:127.0.0.1:1", "code": "OK", "finish_reason": "length",
    "prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 20, "sent_tokens": 20,
    "queue_seconds": 0.125, "first_token_seconds": 0.25, "decode_seconds": 0.5,
    "total_seconds": 0.75})"));
  AccessLog::Record refused;
  refused.request_id = "a\"\n\xff}";
  refused.code = absl::StatusCode::kUnavailable;
  refused.reason = "DRAINING";
  const nlohmann::json members = Members(refused);
  EXPECT_EQ(members["request_id"], "a\"\n\xef\xbf\xbd}");
  EXPECT_EQ(members["reason"], "DRAINING");
  EXPECT_FALSE(members.contains("tenant"));
  EXPECT_FALSE(members.contains("trace_id"));
}

TEST(AccessLogTest, CountsLinesThatNobodyTook) {
  // A sink that stands still until it is told to go on.
  class Stuck final : public spdlog::sinks::base_sink<std::mutex> {
   public:
    std::mutex gate;

   protected:
    void sink_it_(const spdlog::details::log_msg&) override { std::lock_guard wait(gate); }
    void flush_() override {}
  };
  const auto sink = std::make_shared<Stuck>();
  auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink));
  {
    AccessLog log(/*json=*/false);
    std::unique_lock stand(sink->gate);
    for (int i = 0; i < 4096; ++i) log.Write(Traced());
    EXPECT_EQ(log.DroppedLines(), 0u);
    for (int i = 0; i < 100; ++i) log.Write(Traced());
    EXPECT_THAT(log.DroppedLines(), testing::AllOf(testing::Ge(98u), testing::Le(100u)));
  }
  spdlog::set_default_logger(std::move(before));
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
