#include "engine/tokenizer/normal_form.h"

#include <string>

#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

std::string Nfc(const std::string& text) {
  const auto normalized = Normalize(text, NormalForm::kNfc);
  EXPECT_TRUE(normalized.ok()) << normalized.status();
  return normalized.value_or("");
}

TEST(NormalFormTest, ComposesAndOrders) {
  EXPECT_EQ(Nfc("plain"), "plain");
  EXPECT_EQ(Nfc("e\u0301"), "\u00e9");
  EXPECT_EQ(Nfc("\u212b"), "\u00c5");  // a singleton
  EXPECT_EQ(Nfc("\u1e9b\u0323"), "\u1e9b\u0323");
  EXPECT_EQ(Nfc("s\u0307\u0323"), "\u1e69");  // the lower mark first, then both compose
  EXPECT_EQ(Nfc("q\u0307\u0323"), "q\u0323\u0307");
  EXPECT_EQ(Nfc("\u0958"), "\u0915\u093c");  // excluded from composition
  EXPECT_EQ(Nfc("\ufb01"), "\ufb01");        // compatibility forms stay
  EXPECT_EQ(Nfc("\u1112\u1161\u11ab"), "\ud55c");
  EXPECT_EQ(Nfc("\U0001d15e"), "\U0001d157\U0001d165");
  EXPECT_EQ(Nfc(std::string("a\0b\u0301", 5)), std::string("a\0b\u0301", 5));
}

TEST(NormalFormTest, MarksOfOneClassKeepTheirOrder) {
  std::string text = "q";
  std::string lower = "q";
  std::string upper;
  for (int i = 0; i < 40; ++i) {
    text += "\u0307\u0323\u0300";
    lower += "\u0323";
    upper += "\u0307\u0300";
  }
  EXPECT_EQ(Nfc(text), lower + upper);
}

TEST(NormalFormTest, KeepsTheCodePointBeforeTheTrailingConsonants) {
  EXPECT_EQ(Nfc("\ud600\u11a7"), "\ud600\u11a7");
  EXPECT_EQ(Nfc("\u11a7e\u0301\u11a7\u11a7\u1112\u1161\u11a8\u11a7"),
            "\u11a7\u00e9\u11a7\u11a7\ud559\u11a7");
}

TEST(NormalFormTest, QuickCheckNeverSkipsTextThatWouldChange) {
  EXPECT_TRUE(IsSurelyNormal("ASCII and Grüße \u02ff", NormalForm::kNfc));
  EXPECT_FALSE(IsSurelyNormal("e\u0301", NormalForm::kNfc));
  EXPECT_FALSE(IsSurelyNormal("\u0340", NormalForm::kNfc));
  EXPECT_FALSE(IsSurelyNormal("\u212b", NormalForm::kNfc));
  EXPECT_TRUE(IsSurelyNormal("ASCII", NormalForm::kNfkc));
  EXPECT_FALSE(IsSurelyNormal("\u00a0", NormalForm::kNfkc));
  EXPECT_TRUE(IsSurelyNormal("e\u0301", NormalForm::kNone));
}

TEST(NormalFormTest, ReplacesCompatibilityCharactersOnRequest) {
  const auto normalized =
      Normalize("x\u00b2\u00a0\ufb01 \uff21\uff76\uff9e \u1e9b\u0323 e\u0301", NormalForm::kNfkc);
  ASSERT_TRUE(normalized.ok()) << normalized.status();
  EXPECT_EQ(*normalized, "x2 fi A\u30ac \u1e69 \u00e9");
  const auto longest = Normalize("\ufdfa", NormalForm::kNfkc);
  ASSERT_TRUE(longest.ok()) << longest.status();
  EXPECT_EQ(longest->size(), 33u);
  EXPECT_EQ(Normalize("e\u0301", NormalForm::kNone).value_or(""), "e\u0301");
}

// With an insertion sort this run of marks takes hours.
TEST(NormalFormTest, OrdersAMillionMarksInTime) {
  constexpr int kMarks = 250'000;
  std::string text = "q";
  for (int i = 0; i < kMarks; ++i) text += "\u0307";
  for (int i = 0; i < kMarks; ++i) text += "\u0323";
  const std::string normalized = Nfc(text);
  ASSERT_EQ(normalized.size(), text.size());
  EXPECT_EQ(normalized.substr(0, 5), "q\u0323\u0323");
  EXPECT_EQ(normalized.substr(normalized.size() - 4), "\u0307\u0307");
}

}  // namespace
}  // namespace sluice::engine
