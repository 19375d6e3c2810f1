#include "engine/tokenizer/spm_tokenizer.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/tokenizer/detokenizer.h"
#include "tests/engine/tokenizer/vocabulary_draft.h"
#include "tests/testing/tally.h"

namespace sluice::engine {
namespace {

using sluice::testing::GgufDraft;
using sluice::testing::Ids;
using sluice::testing::JoinBytes;
using sluice::testing::kScores;
using sluice::testing::kTokens;
using sluice::testing::kTypes;
using sluice::testing::OpenTokenizer;
using sluice::testing::RandomText;

const std::string kGolden = std::string(SLUICE_GOLDEN_DIR) + "/tiny/vocab-spm";
constexpr TokenId kUnknownId = 0;
constexpr TokenId kBos = 1;

// Unknown, BOS, EOS, then the byte tokens unless `has_bytes` is false, then what is added. Value.
struct SpmDraft {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<float> scores = {0, 0, 0};
  std::vector<int32_t> types = {2, 3, 3};

  explicit SpmDraft(bool has_bytes) {
    for (int byte = 0; has_bytes && byte < 256; ++byte) {
      char name[8];
      std::snprintf(name, sizeof(name), "<0x%02X>", byte);
      Add(name, 0, TokenType::kByte);
    }
  }
  TokenId Add(const std::string& token, float score, TokenType type = TokenType::kNormal) {
    tokens.push_back(token);
    scores.push_back(score);
    types.push_back(static_cast<int32_t>(type));
    return static_cast<TokenId>(tokens.size()) - 1;
  }
  GgufDraft File() const {
    GgufDraft file;
    file.SetString("general.architecture", "llama");
    file.SetString("tokenizer.ggml.model", "llama");
    file.SetStrings(kTokens, tokens);
    file.Set(kScores, MetadataArray(scores));
    file.Set(kTypes, MetadataArray(types));
    file.Set("tokenizer.ggml.bos_token_id", uint32_t{1});
    file.Set("tokenizer.ggml.eos_token_id", uint32_t{2});
    return file;
  }
};

std::shared_ptr<const Tokenizer> MustOpen(const GgufDraft& file) {
  const auto tokenizer = OpenTokenizer(file);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    std::abort();
  }
  return *tokenizer;
}

std::string Detokenize(const std::shared_ptr<const Tokenizer>& tokenizer,
                       const std::vector<TokenId>& ids, bool continues_text) {
  Detokenizer detokenizer(tokenizer, true, continues_text);
  std::string text;
  for (const TokenId id : ids) detokenizer.Append(id, text);
  detokenizer.Finish(text);
  return text;
}

TEST(SpmTokenizerTest, GivesTheGoldenIds) {
  const auto tokenizer = OpenTokenizer(kGolden + ".gguf");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->model(), "llama");
  EXPECT_EQ((*tokenizer)->pre(), "");
  EXPECT_TRUE((*tokenizer)->adds_bos());
  testing::Tally tally({"tokenizers/SentencePiece"}, "golden texts");
  std::ifstream lines(kGolden + ".tokenizer.jsonl");
  int num_texts = 0;
  for (std::string line; std::getline(lines, line); ++num_texts) {
    const nlohmann::json expected = nlohmann::json::parse(line);
    const std::string text = expected["text"];
    const std::vector<TokenId> ids = Ids(**tokenizer, text, false);
    EXPECT_TRUE(tally.Add(ids == expected["ids"].get<std::vector<TokenId>>())) << text;
    EXPECT_EQ(Detokenize(*tokenizer, ids, false), text);
  }
  EXPECT_EQ(num_texts, 64);
}

TEST(SpmTokenizerTest, DecodingGivesTheTextBack) {
  const uint64_t seed = std::random_device{}();
  std::cout << "seed " << seed << "\n";
  std::mt19937_64 random(seed);
  const auto tokenizer = OpenTokenizer(kGolden + ".gguf");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (int round = 0; round < 3000; ++round) {
    const std::string text = RandomText(random, 1 + static_cast<int>(random() % 20));
    if (text.find("\u2581") != std::string::npos) continue;  // becomes a space
    ASSERT_EQ(Detokenize(*tokenizer, Ids(**tokenizer, text, false, true), false), text);
  }
}

// The pieces by the definition: of all neighbours the sum of highest score, of those the leftmost.
std::vector<std::string> JoinSlowly(const std::string& text, const SpmDraft& draft) {
  std::vector<std::string> parts;
  for (const char c : text) parts.emplace_back(1, c);
  while (true) {
    float best_score = -std::numeric_limits<float>::infinity();
    size_t best = parts.size();
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      for (size_t id = 0; id < draft.tokens.size(); ++id) {
        if (draft.tokens[id] == parts[i] + parts[i + 1] && draft.scores[id] > best_score) {
          best_score = draft.scores[id];
          best = i;
        }
      }
    }
    if (best == parts.size()) return parts;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(SpmTokenizerTest, RandomScoresEqualTheDefinition) {
  const uint64_t seed = std::random_device{}();
  std::cout << "seed " << seed << "\n";
  std::mt19937_64 random(seed);
  for (int round = 0; round < 100; ++round) {
    SpmDraft draft(true);
    std::vector<std::string> known = {"a", "b", "c"};
    for (const std::string& letter : known) draft.Add(letter, -100);
    for (int i = 0; i < 25; ++i) {
      const std::string piece = known[random() % known.size()] + known[random() % known.size()];
      if (std::find(known.begin(), known.end(), piece) != known.end()) continue;
      draft.Add(piece, -static_cast<float>(random() % 8));  // with equal scores among them
      known.push_back(piece);
    }
    GgufDraft file = draft.File();
    file.Set("tokenizer.ggml.add_space_prefix", false);
    const auto tokenizer = MustOpen(file);
    for (int i = 0; i < 20; ++i) {
      std::string text(1 + random() % 40, 'a');
      for (char& c : text) c = static_cast<char>('a' + random() % 3);
      std::vector<std::string> parts;
      for (const TokenId id : Ids(*tokenizer, text, false)) {
        parts.emplace_back(tokenizer->TokenBytes(id));
      }
      ASSERT_EQ(parts, JoinSlowly(text, draft)) << text;
    }
  }
}

TEST(SpmTokenizerTest, UnknownCharactersBecomeBytesOrUnknown) {
  SpmDraft with_bytes(true);
  const TokenId a = with_bytes.Add("a", -1);
  GgufDraft file = with_bytes.File();
  const auto byte = [](int value) { return static_cast<TokenId>(3 + value); };
  // The space has no piece either: it is spelled U+2581.
  EXPECT_EQ(Ids(*MustOpen(file), "aé", false),
            (std::vector<TokenId>{byte(0xE2), byte(0x96), byte(0x81), a, byte(0xC3), byte(0xA9)}));
  SpmDraft without(false);
  const TokenId b = without.Add("b", -1);
  file = without.File();
  file.Set("tokenizer.ggml.add_space_prefix", false);
  EXPECT_EQ(Ids(*MustOpen(file), "xyzb東京b", false),
            (std::vector<TokenId>{kUnknownId, b, kUnknownId, b}));
  EXPECT_EQ(Ids(*MustOpen(file), "xy<unk>z", true),
            (std::vector<TokenId>{kUnknownId, kUnknownId, kUnknownId}));
}

TEST(SpmTokenizerTest, ScoresMayBeIntegers) {
  SpmDraft draft(true);
  const TokenId a = draft.Add("a", -9);
  draft.Add("b", -9);
  draft.Add("aa", -2);
  const TokenId ab = draft.Add("ab", -1);
  GgufDraft file = draft.File();
  file.Set("tokenizer.ggml.add_space_prefix", false);
  file.Set(kScores, MetadataArray(std::vector<int32_t>(draft.scores.begin(), draft.scores.end())));
  EXPECT_EQ(Ids(*MustOpen(file), "aab", false), (std::vector<TokenId>{a, ab}));
}

TEST(SpmTokenizerTest, UnusedPiecesAreTakenApart) {
  SpmDraft draft(true);
  const TokenId a = draft.Add("a", -10);
  const TokenId b = draft.Add("b", -10);
  const TokenId ab = draft.Add("ab", -1);
  draft.Add("abab", -2, TokenType::kUnused);
  const TokenId whole = draft.Add("ababab", -3);
  draft.Add("ba", -4, TokenType::kUnused);
  GgufDraft file = draft.File();
  file.Set("tokenizer.ggml.add_space_prefix", false);
  const auto tokenizer = MustOpen(file);
  EXPECT_EQ(Ids(*tokenizer, "abab", false), (std::vector<TokenId>{ab, ab}));
  EXPECT_EQ(Ids(*tokenizer, "ababab", false), (std::vector<TokenId>{whole}));
  EXPECT_EQ(Ids(*tokenizer, "ba", false), (std::vector<TokenId>{b, a}));
}

TEST(SpmTokenizerTest, TheSpaceBeforeTheFirstWordComesAndGoes) {
  SpmDraft draft(true);
  const TokenId a = draft.Add("a", -3);
  const TokenId space = draft.Add("\u2581", -4);
  const TokenId space_a = draft.Add("\u2581a", -1);
  const TokenId user = draft.Add("<\u2581tool>", 0, TokenType::kUserDefined);
  const TokenId two_spaces = draft.Add("\u2581\u2581", 0, TokenType::kUserDefined);
  GgufDraft file = draft.File();
  const auto tokenizer = MustOpen(file);
  using V = std::vector<TokenId>;
  EXPECT_EQ(Ids(*tokenizer, "a", true, true), (V{kBos, space_a}));
  EXPECT_EQ(Ids(*tokenizer, "   a", true), (V{two_spaces, two_spaces, a}));
  EXPECT_EQ(Ids(*tokenizer, "a</s>a", true), (V{space_a, 2, space_a}));
  EXPECT_EQ(Ids(*tokenizer, "<s>a", true, true), (V{kBos, space_a}));
  EXPECT_EQ(Ids(*tokenizer, "a< tool>a", false), (V{space_a, user, a}));
  EXPECT_EQ(Ids(*tokenizer, "<\u2581tool>a", false), (V{space, user, a}));
  EXPECT_EQ(Ids(*tokenizer, "</s>< tool>a", true), (V{2, space, user, a}));
  // The space that comes first may be a part of a user-defined token.
  EXPECT_EQ(Ids(*tokenizer, " a  a", false), (V{two_spaces, a, two_spaces, a}));
  EXPECT_TRUE(tokenizer->RemovesLeadingSpace());
  EXPECT_EQ(Detokenize(tokenizer, {kBos, space_a, space_a}, false), "a a");
  EXPECT_EQ(Detokenize(tokenizer, {space_a, space_a}, true), " a a");
  EXPECT_EQ(Detokenize(tokenizer, {user, space_a}, false), "< tool> a");

  file.Set("tokenizer.ggml.add_space_prefix", false);
  EXPECT_EQ(Ids(*MustOpen(file), "a", true), V{a});
  EXPECT_FALSE(MustOpen(file)->RemovesLeadingSpace());
}

TEST(SpmTokenizerTest, TokensAddedToThePiecesCutTheTextBeforeTheSpaceComes) {
  SpmDraft draft(true);
  const TokenId user = draft.Add("user", -3);
  const TokenId space = draft.Add("\u2581", -4);
  const TokenId space_user = draft.Add("\u2581user", -1);
  for (const char* half : {"u", "s", "e", "r", "us", "er"}) draft.Add(half, -9);
  const TokenId start = draft.Add("<|im_start|>", -1000, TokenType::kUserDefined);
  const TokenId own = draft.Add("<own>", 0, TokenType::kUserDefined);
  GgufDraft file = draft.File();
  const auto tokenizer = MustOpen(file);
  using V = std::vector<TokenId>;
  for (const bool parse_special : {false, true}) {
    EXPECT_EQ(Ids(*tokenizer, "<|im_start|>user", parse_special), (V{start, space_user}));
    EXPECT_EQ(Ids(*tokenizer, "user<|im_start|>user", parse_special),
              (V{space_user, start, space_user}));
    EXPECT_EQ(Ids(*tokenizer, "<|im_start|><|im_start|>", parse_special), (V{start, start}));
    EXPECT_EQ(Ids(*tokenizer, "<own>user", parse_special), (V{space, own, user}));
    EXPECT_EQ(Ids(*tokenizer, "<|im_start|><own>", parse_special), (V{start, space, own}));
  }
  EXPECT_EQ(Ids(*tokenizer, "<|im_start|>user", true, true), (V{kBos, start, space_user}));
  file.Set("tokenizer.ggml.add_space_prefix", false);
  EXPECT_EQ(Ids(*MustOpen(file), "<|im_start|>user", true), (V{start, user}));
}

TEST(SpmTokenizerTest, ContradictoryVocabulariesAreRefused) {
  const auto expect_refused = [](const GgufDraft& file, const std::string& word) {
    const auto tokenizer = OpenTokenizer(file);
    ASSERT_FALSE(tokenizer.ok()) << word;
    EXPECT_NE(tokenizer.status().ToString().find(word), std::string::npos) << tokenizer.status();
  };
  for (const char* name : {"<0x-1>", "<0xZZ>", "<0x>", "<0x100>", "0x41", "<0x4G>", "A"}) {
    SpmDraft draft(true);
    draft.Add(name, 0, TokenType::kByte);
    expect_refused(draft.File(), "tokens[259]: expected a byte token");
  }
  const SpmDraft draft(true);
  GgufDraft file = draft.File();
  file.Remove(kScores);
  expect_refused(file, "scores is missing");
  std::vector<float> scores = draft.scores;
  scores[5] = std::nanf("");
  file.Set(kScores, MetadataArray(scores));
  expect_refused(file, "scores[5]");
  scores.pop_back();
  file.Set(kScores, MetadataArray(scores));
  expect_refused(file, "one a token");
  file.Set(kScores, MetadataArray(std::vector<std::string>(draft.scores.size(), "0")));
  expect_refused(file, "scores");
  file = draft.File();
  file.Set("tokenizer.ggml.remove_extra_whitespaces", true);
  expect_refused(file, "remove_extra_whitespaces");
  file = draft.File();
  file.Set("tokenizer.ggml.precompiled_charsmap", MetadataArray(std::vector<uint8_t>(3)));
  expect_refused(file, "precompiled_charsmap");
  file = draft.File();
  file.Remove("tokenizer.ggml.bos_token_id");
  expect_refused(file, "bos_token_id is missing");
}

TEST(SpmTokenizerTest, LongTextsTakeNoLongerThanTheirLength) {
  const auto tokenizer = OpenTokenizer(kGolden + ".gguf");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const std::string unit : {"a", " ", "the server ", "東", "\n"}) {
    std::string text;
    while (text.size() < size_t{1} << 20) text += unit;
    EXPECT_TRUE(Detokenize(*tokenizer, Ids(**tokenizer, text, true), false) == text) << unit;
  }
}

}  // namespace
}  // namespace sluice::engine
