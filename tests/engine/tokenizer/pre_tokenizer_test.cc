#include "engine/tokenizer/pre_tokenizer.h"

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

std::vector<std::string> Words(std::string_view pre, const std::string& text) {
  const auto pre_tokenizer = PreTokenizer::Create(pre);
  EXPECT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  std::vector<std::string_view> pieces;
  EXPECT_TRUE((*pre_tokenizer)->Split(text, pieces).ok());
  return {pieces.begin(), pieces.end()};
}

TEST(PreTokenizerTest, CutsAsTheFamiliesDo) {
  using W = std::vector<std::string>;
  EXPECT_EQ(Words("smollm", ""), W());
  EXPECT_EQ(Words("smollm", "I'm 3.14  x\n\n y"),
            (W{"I", "'m", " ", "3", ".", "1", "4", " ", " x", "\n\n", " y"}));
  EXPECT_EQ(Words("smollm", "I'M a\u00b2b"), (W{"I", "'", "M", " a", "\u00b2", "b"}));
  EXPECT_EQ(
      Words("qwen2", "I'M 1234,\n\n (x)  y \n z"),
      (W{"I", "'M", " ", "1", "2", "3", "4", ",\n\n", " (", "x", ")", " ", " y", " \n", " z"}));
  EXPECT_EQ(Words("llama-bpe", "in 12345 \u0663\u0664"),
            (W{"in", " ", "123", "45", " ", "\u0663\u0664"}));
  EXPECT_EQ(Words("llama-bpe", "\tTab.\r\n\r\nx   "), (W{"\tTab", ".\r\n\r\n", "x", "   "}));
  // U+180E is no space; U+0085 and U+3000 are.
  EXPECT_EQ(Words("qwen2", "a \u180eb\u0085\u3000c"),
            (W{"a", " \u180e", "b", "\u0085", "\u3000c"}));
  EXPECT_EQ(Words("qwen2", "a  \u180e\n"), (W{"a", " ", " \u180e\n"}));
  EXPECT_EQ(Words("llama-bpe", "it'\u017f"), (W{"it", "'\u017f"}));
  // Endings of any case are words of their own, even before letters.
  EXPECT_EQ(Words("qwen2", "IT'Sx"), (W{"IT", "'S", "x"}));
  EXPECT_EQ(Words("llama-bpe", "he'LLx"), (W{"he", "'LL", "x"}));
}

// Letters come with the capitals before them, and with their contraction or without.
TEST(PreTokenizerTest, CutsWordsWhereCapitalsBegin) {
  using W = std::vector<std::string>;
  EXPECT_EQ(Words("gpt-4o", "HTTPServer'S a/b/\n1234 x"),
            (W{"HTTPServer'S", " a", "/b", "/\n", "123", "4", " x"}));
  EXPECT_EQ(Words("tekken", "camelCase'S 12"), (W{"camel", "Case", "'S", " ", "1", "2"}));
  EXPECT_EQ(Words("tekken", "नमस्ते"), (W{"नमस्ते"}));
  EXPECT_EQ(Words("kimi-k2", "日本Aa語\u3005b\u3021"),
            (W{"日本", "Aa", "語\u3005", "b", "\u3021"}));
  EXPECT_EQ(Words("qwen35", "नमस्ते"), (W{"नमस्ते"}));
  EXPECT_EQ(Words("qwen2", "नमस्"), (W{"नमस", "्"}));
}

TEST(PreTokenizerTest, CutsInSeveralSteps) {
  using W = std::vector<std::string>;
  EXPECT_EQ(Words("deepseek-llm", "ab 12\n\n x,y  東京 Ж  "),
            (W{"ab", " ", "1", "2", "\n", "\n", " x", ",", "y", "  ", "東京", " Ж", "  "}));
  EXPECT_EQ(Words("deepseek-coder", "a\tb..12 \u0416+="),
            (W{"a", "\tb", "..", "1", "2", " \u0416", "+="}));
  EXPECT_EQ(Words("deepseek-v3", "12345東 京かなab\u200d #define x  y"),
            (W{"123", "45", "東", " ", "京かな", "ab", "\u200d", " #", "define", " x", " ", " y"}));
  EXPECT_EQ(Words("default", "a+b 12345?!x"), (W{"a", "+", "b", " ", "123", "45", "?!", "x"}));
  EXPECT_EQ(Words("bloom", "a b, c|d (e) 12 \n"),
            (W{"a", " b", ",", " c", "|", "d", " (", "e", ")", " 12", " \n"}));
  // Bytes that the alphabet spells with a superscript or a fraction are digits; U+2E48 is no
  // punctuation there, or it would be one piece with its neighbours.
  EXPECT_EQ(Words("falcon", "12345 \u00bd6789+\u2e48`"),
            (W{"123", "45", " \xC2", "\xBD", "678", "9", "+", "\xE2", "\xB9", "\x88", "`"}));
  EXPECT_EQ(Words("falcon", "\u043c"), (W{"\xD0", "\xBC"}));
}

TEST(PreTokenizerTest, NamesTheUnknownAndTheKnown) {
  const auto unknown = PreTokenizer::Create("gpt-5");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(unknown.status().ToString().find("gpt-5"), std::string::npos);
  std::set<std::string_view> names;
  for (const PreTokenizerRules& rules : KnownPreTokenizerRules()) {
    EXPECT_NE(unknown.status().ToString().find(rules.name), std::string::npos) << rules.name;
    EXPECT_TRUE(PreTokenizer::Create(rules.name).ok()) << rules.name;
    EXPECT_TRUE(names.insert(rules.name).second) << rules.name;
  }
  EXPECT_EQ(names.size(), 38u);
}

}  // namespace
}  // namespace sluice::engine
