#include "server/trace_context.h"

#include <gtest/gtest.h>

#include <string>

namespace sluice::server {
namespace {

constexpr char kTraceId[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kSpanId[] = "00f067aa0ba902b7";

std::string Header(const std::string& flags = "01", const std::string& version = "00") {
  return version + "-" + kTraceId + "-" + kSpanId + "-" + flags;
}

TEST(TraceparentTest, HasTraceSpanAndSampling) {
  const auto trace = ParseTraceparent(Header());
  ASSERT_TRUE(trace.has_value());
  EXPECT_EQ(trace->trace_id, kTraceId);
  EXPECT_EQ(trace->span_id, kSpanId);
  EXPECT_TRUE(trace->sampled);
  // Of the flags only the last bit has a meaning yet.
  for (const char* flags : {"00", "02", "fe", "0a"}) {
    ASSERT_TRUE(ParseTraceparent(Header(flags)).has_value()) << flags;
    EXPECT_FALSE(ParseTraceparent(Header(flags))->sampled) << flags;
  }
  for (const char* flags : {"03", "ff", "0b"}) {
    ASSERT_TRUE(ParseTraceparent(Header(flags)).has_value()) << flags;
    EXPECT_TRUE(ParseTraceparent(Header(flags))->sampled) << flags;
  }
}

TEST(TraceparentTest, TakesWhatLaterVersionsAdd) {
  EXPECT_TRUE(ParseTraceparent(Header("01", "01")).has_value());
  EXPECT_TRUE(ParseTraceparent(Header("01", "cc") + "-what-will-be").has_value());
  EXPECT_FALSE(ParseTraceparent(Header("01", "cc") + ".what").has_value());
  EXPECT_FALSE(ParseTraceparent(Header("01", "00") + "-what").has_value());
  EXPECT_FALSE(ParseTraceparent(Header("01", "ff")).has_value());
}

TEST(TraceparentTest, IgnoresWhatIsMalformed) {
  const std::string good = Header();
  EXPECT_FALSE(ParseTraceparent("").has_value());
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(ParseTraceparent(good.substr(0, length)).has_value()) << length;
  }
  EXPECT_FALSE(ParseTraceparent(good + " ").has_value());
  EXPECT_FALSE(ParseTraceparent(" " + good).has_value());
  EXPECT_FALSE(ParseTraceparent(good + "," + good).has_value());
  // Every place holds the one kind of character that it must: a digit a-f or a dash.
  for (size_t i = 0; i < good.size(); ++i) {
    for (const char wrong : {'-', 'g', 'A', ' ', '\n', '\0', '\xff'}) {
      if (good[i] == wrong) continue;
      std::string bad = good;
      bad[i] = wrong;
      EXPECT_FALSE(ParseTraceparent(bad).has_value()) << bad;
    }
    if (good[i] == '-') {
      std::string bad = good;
      bad[i] = '0';
      EXPECT_FALSE(ParseTraceparent(bad).has_value()) << bad;
    }
  }
  EXPECT_FALSE(ParseTraceparent("00-" + std::string(32, '0') + "-" + kSpanId + "-01").has_value());
  EXPECT_FALSE(ParseTraceparent("00-" + std::string(kTraceId) + "-" + std::string(16, '0') + "-01")
                   .has_value());
}

}  // namespace
}  // namespace sluice::server
