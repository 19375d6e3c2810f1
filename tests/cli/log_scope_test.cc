#include "cli/log_scope.h"

#include <chrono>
#include <memory>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "spdlog/logger.h"
#include "spdlog/sinks/ostream_sink.h"

namespace sluice::cli {
namespace {

using nlohmann::json;

// What the logger `name` writes of `message`.
std::string LineOf(const std::string& name, const std::string& message) {
  std::ostringstream out;
  auto sink = std::make_shared<spdlog::sinks::ostream_sink_st>(out);
  sink->set_formatter(std::make_unique<JsonFormatter>("access"));
  spdlog::logger logger(name, sink);
  logger.warn(message);
  return out.str();
}

TEST(JsonFormatterTest, EveryMessageIsOneObjectOnOneLine) {
  for (const std::string message : {"plain", "", "two\nlines\r\n", "\"quotes\" and \\",
                                    "\x01\x1b[31m", "\xc3\xa9\xe6\x9d\xb1", "{}%s {:d}"}) {
    const std::string line = LineOf("sluice", message);
    EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
    const json object = json::parse(line);
    EXPECT_EQ(object["message"], message);
    EXPECT_EQ(object["level"], "warning");
    EXPECT_EQ(object.size(), 3u) << line;
  }
  EXPECT_EQ(json::parse(LineOf("sluice", "a\xff\xfez"))["message"], "a\xef\xbf\xbd\xef\xbf\xbdz");
}

TEST(JsonFormatterTest, TakesMembersAsTheyAre) {
  const json object = json::parse(LineOf("access", R"("message":"generate","sent_tokens":7)"));
  EXPECT_EQ(object["message"], "generate");
  EXPECT_EQ(object["sent_tokens"], 7);
  EXPECT_EQ(object["level"], "warning");
}

TEST(JsonFormatterTest, TimesAreUtcToTheMicrosecond) {
  JsonFormatter formatter("access");
  spdlog::details::log_msg line(
      spdlog::log_clock::time_point(std::chrono::duration_cast<spdlog::log_clock::duration>(
          std::chrono::microseconds(1'700'000'000'000'042))),
      spdlog::source_loc(), "sluice", spdlog::level::info, "x");
  spdlog::memory_buf_t out;
  formatter.format(line, out);
  EXPECT_EQ(json::parse(std::string(out.data(), out.size()))["time"],
            "2023-11-14T22:13:20.000042Z");
}

}  // namespace
}  // namespace sluice::cli
