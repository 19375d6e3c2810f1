#include "engine/tokenizer/detokenizer.h"

#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"

#include "engine/tokenizer/utf8.h"
#include "tests/engine/tokenizer/vocabulary_draft.h"

namespace sluice::engine {
namespace {

using sluice::testing::OpenTokenizer;
using sluice::testing::RandomText;
using sluice::testing::SmallVocabulary;
using sluice::testing::VocabularyDraft;

constexpr const char* kReplacement = "\uFFFD";

// The text of all bytes, by the definition: one U+FFFD for each maximal subpart.
std::string Repaired(std::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    const Utf8Step step = NextUtf8(bytes);
    text +=
        step.state == Utf8State::kValid ? std::string(bytes.substr(0, step.length)) : kReplacement;
    bytes.remove_prefix(step.length);
  }
  return text;
}

class DetokenizerTest : public ::testing::Test {
 protected:
  DetokenizerTest() {
    const VocabularyDraft draft = SmallVocabulary("smollm");
    const auto tokenizer = OpenTokenizer(draft.File());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *tokenizer;
    for (TokenId id = 256; id < tokenizer_->vocab_size(); ++id) {
      if (tokenizer_->TokenBytes(id) == "<|im_end|>") control_ = id;
      if (tokenizer_->TokenBytes(id) == "<think>") user_defined_ = id;
      if (tokenizer_->TokenBytes(id) == "hello") hello_ = id;
    }
  }

  // Token N < 256 is byte N.
  static TokenId Byte(char c) { return static_cast<uint8_t>(c); }

  // Every piece given out must be whole code points.
  std::string Detokenize(const std::vector<TokenId>& ids, bool skip_special = true) {
    Detokenizer detokenizer(tokenizer_, skip_special, true);
    std::string text;
    for (const TokenId id : ids) {
      std::string piece;
      detokenizer.Append(id, piece);
      EXPECT_EQ(FindInvalidUtf8(piece), std::string_view::npos);
      text += piece;
    }
    detokenizer.Finish(text);
    return text;
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  TokenId control_ = -1;
  TokenId user_defined_ = -1;
  TokenId hello_ = -1;
};

TEST_F(DetokenizerTest, WaitsForTheLastByteOfACodePoint) {
  for (const std::string text : {"é", "東", "🙂"}) {
    Detokenizer detokenizer(tokenizer_, true, true);
    std::string out;
    for (size_t i = 0; i + 1 < text.size(); ++i) {
      detokenizer.Append(Byte(text[i]), out);
      EXPECT_EQ(out, "");
    }
    detokenizer.Append(Byte(text.back()), out);
    EXPECT_EQ(out, text);
    detokenizer.Finish(out);
    EXPECT_EQ(out, text);
  }
}

TEST_F(DetokenizerTest, BytesThatNeverBecomeTextAreReplaced) {
  EXPECT_EQ(Detokenize({0x80}), kReplacement);
  EXPECT_EQ(Detokenize({0xC3, 'a'}), "\uFFFDa");
  EXPECT_EQ(Detokenize({0xF0, 0x9F, 0x99, hello_}), "\uFFFDhello");
  EXPECT_EQ(Detokenize({0xF0, 0x9F, 0x99}), kReplacement);
  EXPECT_EQ(Detokenize({0xED, 0xA0, 0x80}), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(Detokenize({0xE6, 0xF0, 0x9F, 0x99, 0x82}), "\uFFFD🙂");
}

TEST_F(DetokenizerTest, ControlTokensAreSkippedOrNamed) {
  EXPECT_EQ(Detokenize({hello_, control_, user_defined_}), "hello<think>");
  EXPECT_EQ(Detokenize({hello_, control_, user_defined_}, false), "hello<|im_end|><think>");
  // A skipped token does not come between the bytes around it; a named one does.
  EXPECT_EQ(Detokenize({0xC3, control_, 0xA9}), "é");
  EXPECT_EQ(Detokenize({0xC3, control_, 0xA9}, false), "\uFFFD<|im_end|>\uFFFD");
}

TEST_F(DetokenizerTest, FinishIsTheEnd) {
  Detokenizer detokenizer(tokenizer_, true, true);
  std::string out;
  detokenizer.Append(0xE6, out);
  detokenizer.Finish(out);
  detokenizer.Finish(out);
  EXPECT_EQ(out, kReplacement);
  detokenizer.Append('a', out);
  EXPECT_EQ(out, "\uFFFDa");
}

TEST_F(DetokenizerTest, RandomBytesEqualTheDefinition) {
  const uint64_t seed = std::random_device{}();
  std::cout << "seed " << seed << "\n";
  std::mt19937_64 random(seed);
  constexpr std::string_view kTricky =
      "\xC2\xE0\xED\xEF\xF0\xF1\xF4\xF5\x80\x8F\x90\x9F\xA0\xBF"
      "a";
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes;
    if (round % 2 == 0) {
      for (size_t i = random() % 12; i > 0; --i) bytes += kTricky[random() % kTricky.size()];
    } else {
      bytes = RandomText(random, 3);
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    std::vector<TokenId> ids;
    for (const char c : bytes) ids.push_back(Byte(c));
    ASSERT_EQ(Detokenize(ids), Repaired(bytes));
  }
}

// Tokens of several bytes: every way to cut a text of all code point lengths into two tokens.
TEST(DetokenizerSplitTest, EverySplitOfAText) {
  const std::string text = "aé東🙂ü";
  for (size_t cut = 1; cut < text.size(); ++cut) {
    VocabularyDraft draft;
    const TokenId left =
        draft.Add(sluice::testing::ByteLevel(text.substr(0, cut)), TokenType::kNormal);
    const TokenId right =
        draft.Add(sluice::testing::ByteLevel(text.substr(cut)), TokenType::kNormal);
    const auto tokenizer = OpenTokenizer(draft.File());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    Detokenizer detokenizer(*tokenizer, true, true);
    std::string out;
    detokenizer.Append(left, out);
    EXPECT_EQ(FindInvalidUtf8(out), std::string_view::npos) << cut;
    EXPECT_GT(out.size() + 4, cut);
    detokenizer.Append(right, out);
    EXPECT_EQ(out, text);
    detokenizer.Append(left, out);
    detokenizer.Append(left, out);
    detokenizer.Finish(out);
    EXPECT_EQ(out, text + Repaired(text.substr(0, cut) + text.substr(0, cut)));
  }
}

}  // namespace
}  // namespace sluice::engine
