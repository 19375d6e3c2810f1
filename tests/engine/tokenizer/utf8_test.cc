#include "engine/tokenizer/utf8.h"

#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

// Lengths of the steps through `bytes`, negative for what is not valid.
std::vector<int> Steps(std::string_view bytes) {
  std::vector<int> steps;
  while (!bytes.empty()) {
    const Utf8Step step = NextUtf8(bytes);
    const int length = static_cast<int>(step.length);
    steps.push_back(step.state == Utf8State::kValid ? length : -length);
    bytes.remove_prefix(step.length);
  }
  return steps;
}

TEST(Utf8Test, EveryCodePointComesBack) {
  for (char32_t code_point = 0; code_point < 0x110000; ++code_point) {
    if (code_point == 0xD800) code_point = 0xE000;
    std::string text;
    AppendUtf8(code_point, text);
    const Utf8Step step = NextUtf8(text);
    ASSERT_EQ(step.state, Utf8State::kValid) << static_cast<uint32_t>(code_point);
    ASSERT_EQ(step.code_point, code_point);
    ASSERT_EQ(step.length, text.size());
    for (size_t length = 1; length < text.size(); ++length) {
      const Utf8Step cut = NextUtf8(std::string_view(text).substr(0, length));
      ASSERT_EQ(cut.state, Utf8State::kIncomplete) << static_cast<uint32_t>(code_point);
      ASSERT_EQ(cut.length, length);
    }
  }
}

TEST(Utf8Test, IllFormedTextIsCutIntoMaximalSubparts) {
  // The examples of Unicode 15, tables 3-8 to 3-11.
  EXPECT_EQ(Steps("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            (std::vector<int>{-1, -1, -1, -1, -1, -1, -1, -1, 1}));
  EXPECT_EQ(Steps("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            (std::vector<int>{-1, -1, -1, -1, -1, -1, -1, -1, 1}));
  EXPECT_EQ(Steps("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            (std::vector<int>{-1, -1, -1, -1, -1, 1, -1, -1, 1}));
  EXPECT_EQ(Steps("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), (std::vector<int>{-2, -1, -3, -2, 1}));
}

TEST(Utf8Test, NamesTheFirstByteThatIsWrong) {
  EXPECT_EQ(FindInvalidUtf8(""), std::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8("plain text, and Grüße, 東京 🙂"), std::string_view::npos);
  const std::string before = "0123456789 ü 東 🙂";
  for (const std::string_view wrong : {"\x80", "\xC3", "\xE6\x9D", "\xF0\x9F\x99", "\xED\xA0\x80",
                                       "\xF4\x90\x80\x80", "\xC0\x80", "\xFF"}) {
    for (size_t start = 0; start < 9; ++start) {
      const std::string text = before.substr(start) + std::string(wrong);
      EXPECT_EQ(FindInvalidUtf8(text), before.size() - start);
      EXPECT_EQ(FindInvalidUtf8(text + " and on"), before.size() - start);
    }
  }
}

TEST(Utf8Test, ControlFormatAndLinesAreNotPrintable) {
  for (const std::string_view text :
       {"", " a~", "Grüße, 東京 🙂", "\u00a0", "\u200a", "\u2010", "\ue000", "\U0010ffff"}) {
    EXPECT_TRUE(IsPrintableUtf8(text)) << text;
  }
  for (const std::string_view text :
       {"a\nb", "\r", "\t", "\x1b[31m", "\x7f", "\u0080", "\u009b1m", "\xff", "a\xE6\x9D", "\u00ad",
        "\u200b", "\u200f", "\u2028", "\u2029", "\u202e", "\u2066", "\ufeff", "\U000e0001"}) {
    EXPECT_FALSE(IsPrintableUtf8(text)) << text;
  }
  EXPECT_FALSE(IsPrintableUtf8(std::string_view("a\0b", 3)));
}

}  // namespace
}  // namespace sluice::engine
