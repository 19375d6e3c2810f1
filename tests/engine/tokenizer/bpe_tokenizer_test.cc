#include "engine/tokenizer/bpe_tokenizer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/tokenizer/normal_form.h"
#include "tests/engine/tokenizer/vocabulary_draft.h"
#include "tests/testing/tally.h"

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

  testing::Tally tally({"tokenizers/smollm"}, "golden texts");
  std::ifstream lines(kGolden + "/smollm2/tokenizer.jsonl");
  int num_texts = 0;
  for (std::string line; std::getline(lines, line); ++num_texts) {
    const nlohmann::json expected = nlohmann::json::parse(line);
    const std::string text = expected["text"];
    for (const bool special : {true, false}) {
      const auto ids = expected[special ? "ids_special" : "ids_plain"].get<std::vector<TokenId>>();
      EXPECT_TRUE(tally.Add(Ids(**tokenizer, text, special) == ids)) << text << special;
    }
  }
  EXPECT_EQ(num_texts, 71);
}

TEST(BpeTokenizerTest, TinyModelsGiveTheGoldenIds) {
  std::map<std::string, int> num_files;
  std::map<std::string, testing::Tally> tallies;
  for (const nlohmann::json& model : TinyManifest()) {
    const std::string path = kGolden + "/tiny/" + model["file"].get<std::string>();
    if (!std::ifstream(path)) continue;
    const auto tokenizer = OpenTokenizer(path);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::string pre((*tokenizer)->pre());
    auto& tally =
        tallies.try_emplace(pre, std::vector{"tokenizers/" + pre}, "golden texts").first->second;
    EXPECT_TRUE(tally.Add(Ids(**tokenizer, model["text"].get<std::string>(), true) ==
                          model["text_ids"].get<std::vector<TokenId>>()))
        << path;
    ++num_files[pre];
  }
  EXPECT_GE(num_files["llama-bpe"], 3);
  EXPECT_GE(num_files["qwen2"], 1);
}

TEST(BpeTokenizerTest, DecodingGivesTheTextBack) {
  const uint64_t seed = std::random_device{}();
  std::cout << "seed " << seed << "\n";
  std::mt19937_64 random(seed);
  for (const PreTokenizerRules& rules : KnownPreTokenizerRules()) {
    const std::string_view pre = rules.name;
    const auto tokenizer = MustOpen(SmallVocabulary(pre));
    for (int round = 0; round < 500; ++round) {
      const std::string text = RandomText(random, 1 + static_cast<int>(random() % 20));
      // Without special tokens: normalisation stops at those.
      const std::string decoded = JoinBytes(*tokenizer, Ids(*tokenizer, text, false));
      const std::string expected = *Normalize(text, rules.normal_form);
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

TEST(BpeTokenizerTest, WholePreTokensNeedNoMergesWhereTheFamilySaysSo) {
  int num_ignoring = 0;
  for (const PreTokenizerRules& rules : KnownPreTokenizerRules()) {
    VocabularyDraft draft = SmallVocabulary(rules.name);
    const TokenId whole = draft.Add("unmerged", TokenType::kNormal);
    const auto tokenizer = MustOpen(draft);
    const std::vector<TokenId> ids = Ids(*tokenizer, "unmerged", true);
    if (rules.ignores_merges) {
      EXPECT_EQ(ids, std::vector<TokenId>{whole}) << rules.name;
      ++num_ignoring;
    } else {
      EXPECT_EQ(ids.size(), 8u) << rules.name;
    }
  }
  EXPECT_EQ(num_ignoring, 15);
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

// A megabyte of anything takes at most a second of the processor's time.
TEST(BpeTokenizerTest, LongTextsTakeNoLongerThanTheirLength) {
  constexpr size_t kBytes = SLUICE_SANITIZED ? size_t{1} << 14 : size_t{1} << 20;
  VocabularyDraft draft = SmallVocabulary("");
  for (std::string run : {"a", "Z", " ", "\n", "."}) {
    for (; run.size() < 64; run += run) draft.AddMerge(run, run);
  }
  std::set<std::array<std::string_view, 6>> seen;
  for (const PreTokenizerRules& rules : KnownPreTokenizerRules()) {
    if (!seen.insert(rules.patterns).second) continue;
    draft.pre = rules.name;
    const auto tokenizer = MustOpen(draft);
    for (const std::string unit : {"A", " ", "\n", ".", "1", "東", "\u0307\u0323", "²", " \n"}) {
      std::string text;
      while (text.size() < kBytes) text += unit;
      text += 'x';  // a run that is looked at from its end is looked at in vain
      const std::clock_t start = std::clock();
      const std::vector<TokenId> ids = Ids(*tokenizer, text, true);
      const double spent = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
      std::cout << rules.name << ": a long run of " << ::testing::PrintToString(unit) << ": "
                << ids.size() << " tokens in " << spent << " s\n";
      EXPECT_LE(spent, 1.0) << rules.name << " " << unit;
      const std::string expected = *Normalize(text, rules.normal_form);
      EXPECT_TRUE(JoinBytes(*tokenizer, ids) == expected) << unit;
    }
  }
}

}  // namespace
}  // namespace sluice::engine
