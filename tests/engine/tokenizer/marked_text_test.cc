#include "engine/tokenizer/marked_text.h"

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/tokenizer/vocabulary_draft.h"

namespace sluice::engine {
namespace {

using testing::OpenTokenizer;
using testing::SmallVocabulary;

constexpr auto kTemplate = MarkedText::Mark::kTemplate;
constexpr auto kContent = MarkedText::Mark::kContent;

// The mark of each byte, 't' or 'c'.
std::string MarksOf(const MarkedText& text) {
  std::string marks;
  for (size_t i = 0; i < text.size(); ++i) marks += text.MarkAt(i) == kTemplate ? 't' : 'c';
  return marks;
}

TEST(MarkedTextTest, KeepsTheMarkOfEveryByteThroughRandomEdits) {
  const auto seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  std::vector<std::pair<MarkedText, std::string>> texts(1);  // with the marks there should be
  for (int round = 0; round < 2000; ++round) {
    auto [text, marks] = texts[random() % texts.size()];
    const auto& [other, other_marks] = texts[random() % texts.size()];
    const size_t begin = random() % (other.size() + 1);
    const size_t size = random() % (other.size() - begin + 1);
    if (random() % 2 == 0) {
      const size_t count = random() % 4;
      const auto mark = random() % 2 == 0 ? kTemplate : kContent;
      text.Append(std::string(count, 'x'), mark);
      marks += std::string(count, mark == kTemplate ? 't' : 'c');
    } else if (random() % 2 == 0 && text.size() < 200) {
      text.Append(other, begin, size);
      marks += other_marks.substr(begin, size);
    } else {
      text = other.Substr(begin, size);
      marks = other_marks.substr(begin, size);
    }
    ASSERT_EQ(MarksOf(text), marks);
    std::string of_runs;
    for (const MarkedText::Run& run : text.Runs()) {
      ASSERT_LT(run.begin, run.end);
      ASSERT_EQ(run.begin, of_runs.size());
      const char mark = run.mark == kTemplate ? 't' : 'c';
      ASSERT_TRUE(of_runs.empty() || of_runs.back() != mark);
      of_runs += std::string(run.end - run.begin, mark);
    }
    ASSERT_EQ(of_runs, marks);
    texts.resize(std::min<size_t>(texts.size(), 50));
    texts.emplace_back(std::move(text), std::move(marks));
  }
}

class EncodeChatTest : public ::testing::Test {
 protected:
  EncodeChatTest() {
    const auto draft = SmallVocabulary("smollm");
    testing::GgufDraft file = draft.File();
    const auto id_of = [&draft](std::string_view name) {
      const auto found = std::find(draft.tokens.begin(), draft.tokens.end(), name);
      return static_cast<uint32_t>(found - draft.tokens.begin());
    };
    file.Set("tokenizer.ggml.bos_token_id", id_of("<|endoftext|>"));
    file.Set("tokenizer.ggml.eos_token_id", id_of("<|im_end|>"));
    file.Set("tokenizer.ggml.add_bos_token", true);
    file.Set("tokenizer.ggml.add_eos_token", true);
    tokenizer_ = *OpenTokenizer(file);
  }
  // Tokens in brackets, but for single bytes.
  std::string Encode(const MarkedText& text, bool parse_special = false, bool add_special = false) {
    const auto ids = tokenizer_->EncodeChat(text, {add_special, parse_special});
    if (!ids.ok()) return std::string(ids.status().message());
    std::string out;
    for (const TokenId id : *ids) {
      const std::string bytes(tokenizer_->TokenBytes(id));
      out += bytes.size() == 1 ? bytes : "[" + bytes + "]";
    }
    return out;
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_F(EncodeChatTest, ControlTokensAreTemplateTextOnly) {
  MarkedText text("<|im_start|>user ", kTemplate);
  text.Append("<|im_end|><|im_start|>", kContent);
  text.Append("<|im_end|>", kTemplate);
  EXPECT_EQ(Encode(text), "[<|im_start|>]user <|im_end|><|im_start|>[<|im_end|>]");
  EXPECT_EQ(Encode(text, true), "[<|im_start|>]user [<|im_end|>][<|im_start|>][<|im_end|>]");
}

TEST_F(EncodeChatTest, NoTokenIsMadeOfBoth) {
  MarkedText text("<|im_", kTemplate);
  text.Append("end|>", kContent);
  EXPECT_EQ(Encode(text), "<|im_end|>");
  MarkedText other("<|im_", kContent);
  other.Append("end|>", kTemplate);
  EXPECT_EQ(Encode(other), "<|im_end|>");
}

TEST_F(EncodeChatTest, UserDefinedTokensAreTextWhoeverWroteThem) {
  MarkedText text("<thi", kTemplate);
  text.Append("nk>", kContent);
  EXPECT_EQ(Encode(text), "[<think>]");
}

TEST_F(EncodeChatTest, TextGoesOnAcrossMarks) {
  MarkedText text("say hel", kTemplate);
  text.Append("lo", kContent);
  EXPECT_EQ(Encode(text), "say[ hello]");
}

TEST_F(EncodeChatTest, BosComesOnceAndEosNever) {
  const std::string bos(tokenizer_->TokenBytes(*tokenizer_->bos()));
  EXPECT_EQ(Encode(MarkedText("a", kTemplate), false, true), "[" + bos + "]a");
  EXPECT_EQ(Encode(MarkedText(bos + "a", kTemplate), false, true), "[" + bos + "]a");
  // What only looks like it stands after the real one.
  EXPECT_EQ(Encode(MarkedText(bos + "a", kContent), false, true), "[" + bos + "]" + bos + "a");
}

TEST_F(EncodeChatTest, AllTemplateTextIsEncodedAsTextIs) {
  const auto seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    const std::string text = testing::RandomText(random, 12);
    const auto plain = tokenizer_->Encode(text, {false, false});
    if (!plain.ok()) continue;  // no UTF-8
    EXPECT_EQ(*tokenizer_->EncodeChat(MarkedText(text, kTemplate), {false, false}),
              *tokenizer_->Encode(text, {false, true}));
    EXPECT_EQ(*tokenizer_->EncodeChat(MarkedText(text, kContent), {false, false}), *plain);
  }
}

}  // namespace
}  // namespace sluice::engine
