#include "engine/tokenizer/bpe_tokenizer.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/tokenizer/nfc.h"
#include "tests/engine/tokenizer/vocabulary_draft.h"

namespace sluice::engine {
namespace {

using sluice::testing::GgufDraft;
using sluice::testing::Ids;
using sluice::testing::JoinBytes;
using sluice::testing::OpenTokenizer;
using sluice::testing::RandomText;
using sluice::testing::SmallVocabulary;
using sluice::testing::VocabularyDraft;

const std::string kGolden = SLUICE_GOLDEN_DIR;
const std::string kModel = std::string(SLUICE_MODELS_DIR) + "/SmolLM2-135M-Instruct.Q4_1.gguf";

std::shared_ptr<const Tokenizer> MustOpen(const VocabularyDraft& draft) {
  GgufDraft file = draft.File();
  file.Set("tokenizer.ggml.add_bos_token", false);
  const auto tokenizer = OpenTokenizer(file);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    std::abort();
  }
  return *tokenizer;
}

nlohmann::json TinyManifest() {
  return nlohmann::json::parse(std::ifstream(kGolden + "/tiny/manifest.json"));
}

TEST(BpeTokenizerTest, SmolLm2GivesTheGoldenIds) {
  if (!std::ifstream(kModel)) GTEST_SKIP() << kModel << " is absent (scripts/fetch_model.sh)";
  const auto start = std::chrono::steady_clock::now();
  const auto tokenizer = OpenTokenizer(kModel);
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::cout << "file and tokenizer opened in " << spent.count() * 1e3 << " ms\n";
  EXPECT_EQ((*tokenizer)->vocab_size(), 49152);
  EXPECT_EQ((*tokenizer)->pre(), "smollm");
  EXPECT_FALSE((*tokenizer)->adds_bos());
  EXPECT_EQ((*tokenizer)->end_of_generation(), (std::vector<TokenId>{0, 2}));

  std::ifstream lines(kGolden + "/smollm2/tokenizer.jsonl");
  int num_texts = 0;
  for (std::string line; std::getline(lines, line); ++num_texts) {
    const nlohmann::json expected = nlohmann::json::parse(line);
    const std::string text = expected["text"];
    EXPECT_EQ(Ids(**tokenizer, text, true), expected["ids_special"].get<std::vector<TokenId>>())
        << text;
    EXPECT_EQ(Ids(**tokenizer, text, false), expected["ids_plain"].get<std::vector<TokenId>>())
        << text;
  }
  EXPECT_EQ(num_texts, 71);
}

TEST(BpeTokenizerTest, TinyModelsGiveTheGoldenIds) {
  std::map<std::string, int> num_files;
  for (const nlohmann::json& model : TinyManifest()) {
    const std::string path = kGolden + "/tiny/" + model["file"].get<std::string>();
    if (!std::ifstream(path)) continue;
    const auto tokenizer = OpenTokenizer(path);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ(Ids(**tokenizer, model["text"].get<std::string>(), true),
              model["text_ids"].get<std::vector<TokenId>>())
        << path;
    ++num_files[std::string((*tokenizer)->pre())];
  }
  EXPECT_GE(num_files["llama-bpe"], 3);
  EXPECT_GE(num_files["qwen2"], 1);
}

TEST(BpeTokenizerTest, DecodingGivesTheTextBack) {
  const uint64_t seed = std::random_device{}();
  std::cout << "seed " << seed << "\n";
  std::mt19937_64 random(seed);
  for (const char* pre : {"smollm", "qwen2", "llama-bpe", "llama3", "llama-v3"}) {
    const auto tokenizer = MustOpen(SmallVocabulary(pre));
    for (int round = 0; round < 2000; ++round) {
      const std::string text = RandomText(random, 1 + static_cast<int>(random() % 20));
      // Without special tokens: normalisation stops at those.
      const std::string decoded = JoinBytes(*tokenizer, Ids(*tokenizer, text, false));
      const std::string expected = std::string_view(pre) == "qwen2" ? *ToNfc(text) : text;
      ASSERT_EQ(decoded, expected) << pre;
      ASSERT_EQ(JoinBytes(*tokenizer, Ids(*tokenizer, expected, true)), expected) << pre;
    }
  }
}

// Merges by the definition: of all pairs the lowest rank, of those the leftmost, one at a time.
std::vector<std::string> MergeSlowly(const std::string& text,
                                     const std::vector<std::string>& merges) {
  std::vector<std::string> parts;
  for (const char c : text) parts.emplace_back(1, c);
  while (true) {
    size_t best_rank = merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = std::find(merges.begin(), merges.end(), parts[i] + " " + parts[i + 1]);
      const auto rank = static_cast<size_t>(found - merges.begin());
      if (rank < best_rank) {
        best_rank = rank;
        best = i;
      }
    }
    if (best_rank == merges.size()) return parts;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(BpeTokenizerTest, RandomMergesEqualTheDefinition) {
  const uint64_t seed = std::random_device{}();
  std::cout << "seed " << seed << "\n";
  std::mt19937_64 random(seed);
  for (int round = 0; round < 100; ++round) {
    VocabularyDraft draft;
    std::vector<std::string> known = {"a", "b", "c"};
    for (int i = 0; i < 30; ++i) {
      const std::string left = known[random() % known.size()];
      const std::string right = known[random() % known.size()];
      const std::string merge = left + " " + right;
      if (std::find(draft.merges.begin(), draft.merges.end(), merge) != draft.merges.end())
        continue;
      draft.AddMerge(left, right);
      known.push_back(left + right);
    }
    const auto tokenizer = MustOpen(draft);
    for (int i = 0; i < 20; ++i) {
      std::string text(1 + random() % 50, 'a');
      for (char& c : text) c = static_cast<char>('a' + random() % 3);
      std::vector<std::string> parts;
      for (const TokenId id : Ids(*tokenizer, text, true)) {
        parts.emplace_back(tokenizer->TokenBytes(id));
      }
      ASSERT_EQ(parts, MergeSlowly(text, draft.merges)) << text;
    }
  }
}

TEST(BpeTokenizerTest, OnlyLlamaTakesAWholePreTokenWithoutMerges) {
  for (const char* pre : {"llama-bpe", "llama3", "llama-v3", "qwen2", "smollm"}) {
    VocabularyDraft draft = SmallVocabulary(pre);
    const TokenId whole = draft.Add("unmerged", TokenType::kNormal);
    const auto tokenizer = MustOpen(draft);
    const std::vector<TokenId> ids = Ids(*tokenizer, "unmerged", true);
    if (std::string_view(pre).substr(0, 5) == "llama") {
      EXPECT_EQ(ids, std::vector<TokenId>{whole}) << pre;
    } else {
      EXPECT_EQ(ids.size(), 8u) << pre;
    }
  }
}

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

TEST(PreTokenizerTest, NamesTheUnknownAndTheKnown) {
  const auto unknown = PreTokenizer::Create("gpt-5");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kUnimplemented);
  for (const char* name : {"gpt-5", "smollm", "qwen2", "llama-bpe", "llama3", "llama-v3"}) {
    EXPECT_NE(unknown.status().ToString().find(name), std::string::npos) << name;
  }
}

TEST(BpeTokenizerTest, AddedTokensAreFoundAsAsked) {
  const VocabularyDraft draft = SmallVocabulary("qwen2");
  const auto tokenizer = MustOpen(draft);
  const auto id = [&draft](std::string_view name) {
    const auto found = std::find(draft.tokens.begin(), draft.tokens.end(), name);
    return static_cast<TokenId>(found - draft.tokens.begin());
  };
  const TokenId hello = id("hello");
  const TokenId end = id("<|im_end|>");
  const TokenId think = id("<think>");
  EXPECT_EQ(Ids(*tokenizer, "hello<|im_end|>hello<think>hello", true),
            (std::vector<TokenId>{hello, end, hello, think, hello}));
  const std::vector<TokenId> plain = Ids(*tokenizer, "hello<|im_end|>hello<think>hello", false);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), end), 0);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), think), 1);
  EXPECT_EQ(JoinBytes(*tokenizer, plain), "hello<|im_end|>hello<think>hello");
  // What follows an added token is cut by itself: the mark finds no letter to compose with.
  EXPECT_EQ(JoinBytes(*tokenizer, Ids(*tokenizer, "e<|im_end|>\u0301e\u0301", true)),
            "e<|im_end|>\u0301\u00e9");
  EXPECT_EQ(Ids(*tokenizer, "<|im_end|><|im_end|", true).front(), end);
}

TEST(BpeTokenizerTest, AByteWithoutTokenVanishesAndItsNeighboursMerge) {
  VocabularyDraft draft = SmallVocabulary("smollm");
  draft.tokens[0xC4] = "no_longer_a_byte";  // U+0101 is C4 81
  draft.tokens[0x81] = "nor_is_this";
  const auto tokenizer = MustOpen(draft);
  EXPECT_EQ(Ids(*tokenizer, "he\u0101llo", true), Ids(*tokenizer, "hello", true));
  EXPECT_EQ(Ids(*tokenizer, "\u0101", true), std::vector<TokenId>());
}

TEST(BpeTokenizerTest, RefusesTextThatIsNoUtf8) {
  const auto tokenizer = MustOpen(SmallVocabulary("smollm"));
  const auto ids = tokenizer->Encode("hello \xC3(", {});
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(ids.status().ToString().find("byte 6"), std::string::npos) << ids.status();
}

// Linear or n log n time shows as these returning at all; each is a megabyte.
TEST(BpeTokenizerTest, LongTextsTakeNoLongerThanTheirLength) {
  constexpr size_t kBytes = size_t{1} << 20;
  VocabularyDraft draft = SmallVocabulary("");
  for (std::string run : {"a", "Z", " ", "\n", "."}) {
    for (; run.size() < 64; run += run) draft.AddMerge(run, run);
  }
  for (const char* pre : {"smollm", "qwen2", "llama-bpe"}) {
    draft.pre = pre;
    const auto tokenizer = MustOpen(draft);
    for (const std::string unit : {"a", "Z", " ", "\n", ".", "1", "東", "\u0307\u0323", " \n", "'s",
                                   "\u3000", " a", "<|im_end|", "<|im_end|>", "e\u0301"}) {
      std::string text;
      while (text.size() < kBytes) text += unit;
      const auto start = std::chrono::steady_clock::now();
      const std::vector<TokenId> ids = Ids(*tokenizer, text, true);
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
      std::cout << pre << ": 1 MiB of " << ::testing::PrintToString(unit) << ": " << ids.size()
                << " tokens in " << spent.count() << " s\n";
      const std::string expected = std::string_view(pre) == "qwen2" ? *ToNfc(text) : text;
      EXPECT_TRUE(JoinBytes(*tokenizer, ids) == expected) << unit;
    }
  }
}

}  // namespace
}  // namespace sluice::engine
