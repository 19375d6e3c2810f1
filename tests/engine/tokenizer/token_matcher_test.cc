#include "engine/tokenizer/token_matcher.h"

#include <chrono>
#include <cstdio>
#include <iostream>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

using Found = std::vector<std::tuple<size_t, size_t, TokenId>>;

TokenMatcher Matcher(const std::vector<std::string>& texts) {
  std::vector<TokenMatcher::Token> tokens;
  for (size_t i = 0; i < texts.size(); ++i) tokens.push_back({texts[i], static_cast<TokenId>(i)});
  auto matcher = TokenMatcher::Create(std::move(tokens));
  EXPECT_TRUE(matcher.ok()) << matcher.status();
  return *std::move(matcher);
}

Found Find(const TokenMatcher& matcher, std::string_view text) {
  Found found;
  for (const TokenMatcher::Match& match : matcher.FindAll(text)) {
    found.emplace_back(match.begin, match.size, match.id);
  }
  return found;
}

TEST(TokenMatcherTest, TakesTheLeftmostThenTheLongest) {
  const TokenMatcher matcher = Matcher({"<a>", "<a><b>", "b><c", "xyz", "yz!", "z"});
  EXPECT_EQ(Find(matcher, ""), Found());
  EXPECT_EQ(Find(matcher, "<a"), Found());
  EXPECT_EQ(Find(matcher, "<a><c>"), (Found{{0, 3, 0}}));
  EXPECT_EQ(Find(matcher, "<a><b><c>"), (Found{{0, 6, 1}}));
  EXPECT_EQ(Find(matcher, "-<b><c-<a>"), (Found{{2, 4, 2}, {7, 3, 0}}));
  EXPECT_EQ(Find(matcher, "xyz!z"), (Found{{0, 3, 3}, {4, 1, 5}}));
  EXPECT_EQ(Find(matcher, "yz!xy"), (Found{{0, 3, 4}}));
  EXPECT_EQ(Find(Matcher({}), "anything"), Found());
  EXPECT_EQ(Find(Matcher({"same", "same"}), "same"), (Found{{0, 4, 0}}));
}

TEST(TokenMatcherTest, EqualsTheObviousSearchOnRandomTokens) {
  const uint64_t seed = std::random_device{}();
  std::cout << "seed " << seed << "\n";
  std::mt19937_64 random(seed);
  const auto word = [&random](size_t most) {
    std::string text(random() % most + 1, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 3);
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> tokens(random() % 12);
    for (std::string& token : tokens) token = word(6);
    const std::string text = word(60);
    Found expected;
    for (size_t at = 0; at < text.size();) {
      size_t size = 0;
      TokenId id = -1;
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i].size() > size && text.compare(at, tokens[i].size(), tokens[i]) == 0) {
          size = tokens[i].size();
          id = static_cast<TokenId>(i);
        }
      }
      if (size != 0) expected.emplace_back(at, size, id);
      at += size == 0 ? 1 : size;
    }
    ASSERT_EQ(Find(Matcher(tokens), text), expected) << text;
  }
}

// A scan that goes back after a near miss takes text size times token size here.
TEST(TokenMatcherTest, ManyOverlappingTokensTakeLinearTime) {
  std::vector<std::string> tokens;
  for (int i = 0; i < 100'000; ++i) {
    char name[24];
    std::snprintf(name, sizeof(name), "<|token_%07d|>", i);
    tokens.emplace_back(name);
  }
  tokens.push_back(std::string(60'000, 'a') + "b");
  const TokenMatcher matcher = Matcher(tokens);
  std::string text(4 << 20, 'a');
  for (int i = 0; i < 100'000; ++i) text += "<|token_000";
  text += "<|token_0099999|>";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(Find(matcher, text), (Found{{text.size() - 17, 17, 99'999}}));
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  std::cout << text.size() << " bytes against " << tokens.size() << " tokens: " << spent.count()
            << " s\n";
}

TEST(TokenMatcherTest, RefusesTokensThatWouldFillMemory) {
  const std::string text(65'000, 'a');
  std::vector<TokenMatcher::Token> tokens(200, TokenMatcher::Token{text, 0});
  const auto matcher = TokenMatcher::Create(std::move(tokens));
  EXPECT_EQ(matcher.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace sluice::engine
