#include "engine/sampling/stop_matcher.h"

#include <chrono>
#include <random>

#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

TEST(StopMatcherTest, GivesOutEverythingWithoutStopStrings) {
  StopMatcher matcher({}, false);
  std::string out;
  EXPECT_FALSE(matcher.Append("hello", out));
  EXPECT_EQ(out, "hello");
  EXPECT_TRUE(matcher.held_back().empty());
}

TEST(StopMatcherTest, HoldsBackWhatMayBecomeAStopString) {
  StopMatcher matcher({"END"}, false);
  std::string out;
  EXPECT_FALSE(matcher.Append("the E", out));
  EXPECT_EQ(out, "the ");
  EXPECT_FALSE(matcher.held_back().empty());
  EXPECT_FALSE(matcher.Append("N", out));
  EXPECT_EQ(out, "the ");
  EXPECT_FALSE(matcher.Append("d", out));
  EXPECT_EQ(out, "the ENd");
  EXPECT_TRUE(matcher.held_back().empty());
}

TEST(StopMatcherTest, MatchesAcrossPieces) {
  for (const bool include : {false, true}) {
    StopMatcher matcher({"</s>"}, include);
    std::string out;
    EXPECT_FALSE(matcher.Append("x<", out));
    EXPECT_FALSE(matcher.Append("/", out));
    const auto stop = matcher.Append("s>tail", out);
    ASSERT_TRUE(stop);
    EXPECT_EQ(*stop, "</s>");
    EXPECT_EQ(out, include ? "x</s>" : "x");
    EXPECT_FALSE(matcher.Append("more</s>", out));
    EXPECT_EQ(out, include ? "x</s>" : "x");
  }
}

TEST(StopMatcherTest, FallsBackToAShorterBeginning) {
  StopMatcher matcher({"aab"}, false);
  std::string out;
  EXPECT_FALSE(matcher.Append("aaa", out));
  EXPECT_EQ(out, "a");
  ASSERT_TRUE(matcher.Append("b", out));
  EXPECT_EQ(out, "a");
}

TEST(StopMatcherTest, TheOneThatEndsFirstWinsThenTheLongest) {
  std::string out;
  StopMatcher first({"abcd", "bc"}, false);
  EXPECT_EQ(first.Append("xabcd", out).value_or(""), "bc");
  EXPECT_EQ(out, "xa");
  out.clear();
  StopMatcher longest({"c", "abc", "bc"}, false);
  EXPECT_EQ(longest.Append("xabc", out).value_or(""), "abc");
  EXPECT_EQ(out, "x");
}

TEST(StopMatcherTest, FinishGivesOutWhatWasHeldBack) {
  StopMatcher matcher({"END"}, false);
  std::string out;
  EXPECT_FALSE(matcher.Append("EN", out));
  EXPECT_EQ(out, "");
  matcher.Finish(out);
  EXPECT_EQ(out, "EN");
}

// Against a search of the whole text after every byte.
TEST(StopMatcherTest, EqualsANaiveSearchOnRandomTexts) {
  constexpr uint64_t kSeed = 77;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937_64 random(kSeed);
  const auto random_text = [&](size_t size) {
    std::string text;
    while (text.size() < size) text.push_back(static_cast<char>('a' + random() % 2));
    return text;
  };
  int matches = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = 0; i < 1 + random() % 4; ++i) stops.push_back(random_text(1 + random() % 7));
    const std::string text = random_text(40);
    std::string expected = text;
    std::string expected_stop;
    for (size_t end = 1; end <= text.size() && expected_stop.empty(); ++end) {
      for (const std::string& stop : stops) {
        if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0 &&
            stop.size() > expected_stop.size()) {
          expected_stop = stop;
          expected = text.substr(0, end - stop.size());
        }
      }
    }
    StopMatcher matcher(stops, false);
    std::string out;
    std::optional<std::string> matched;
    for (size_t at = 0; at < text.size() && !matched;) {
      const size_t size = std::min(text.size() - at, 1 + random() % 5);
      matched = matcher.Append(std::string_view(text).substr(at, size), out);
      at += size;
      // What is out is never taken back.
      ASSERT_EQ(expected.compare(0, out.size(), out), 0) << text;
    }
    if (!matched) matcher.Finish(out);
    ASSERT_EQ(matched.value_or(""), expected_stop) << text;
    ASSERT_EQ(out, expected) << text;
    matches += matched.has_value();
  }
  EXPECT_GT(matches, 1000);
}

// A matcher that compares at every place needs 256 times as long here.
TEST(StopMatcherTest, TakesLinearTimeOnRepetitiveText) {
  const std::string stop = std::string(255, 'a') + "b";
  const auto seconds = [&](size_t pieces) {
    StopMatcher matcher({stop}, false);
    const std::string piece(64, 'a');
    std::string out;
    const auto begin = std::chrono::steady_clock::now();
    for (size_t i = 0; i < pieces; ++i) EXPECT_FALSE(matcher.Append(piece, out));
    EXPECT_EQ(out.size(), pieces * 64 - 255);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  EXPECT_LT(seconds(100'000), 5.0);  // 6.4 MB
}

}  // namespace
}  // namespace sluice::engine
