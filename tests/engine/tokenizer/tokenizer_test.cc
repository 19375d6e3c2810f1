#include "engine/tokenizer/tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/keyed_hash.h"
#include "engine/tokenizer/pre_tokenizer_rules.h"
#include "tests/engine/tokenizer/vocabulary_draft.h"

namespace sluice::engine {
namespace {

using sluice::testing::ByteLevel;
using sluice::testing::GgufDraft;
using sluice::testing::Ids;
using sluice::testing::JoinBytes;
using sluice::testing::kMerges;
using sluice::testing::kScores;
using sluice::testing::kTokens;
using sluice::testing::kTypes;
using sluice::testing::OpenTokenizer;
using sluice::testing::SmallVocabulary;
using sluice::testing::VocabularyDraft;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kUnimplemented = absl::StatusCode::kUnimplemented;

TokenId IdOf(const VocabularyDraft& draft, std::string_view name) {
  for (size_t i = 0; i < draft.tokens.size(); ++i) {
    if (draft.tokens[i] == name) return static_cast<TokenId>(i);
  }
  ADD_FAILURE() << name;
  return -1;
}

void ExpectRefused(const GgufDraft& file, absl::StatusCode code, const std::string& word) {
  const auto tokenizer = OpenTokenizer(file);
  ASSERT_FALSE(tokenizer.ok()) << "expected an error with " << word;
  EXPECT_EQ(tokenizer.status().code(), code) << tokenizer.status();
  EXPECT_THAT(tokenizer.status().ToString(), HasSubstr(word));
}

TEST(TokenizerTest, AFileWithoutVocabularySaysSo) {
  GgufDraft file = SmallVocabulary("smollm").File();
  file.Remove("tokenizer.ggml.model");
  ExpectRefused(file, absl::StatusCode::kNotFound, "tokenizer.ggml.model is missing");
  file.SetString("tokenizer.ggml.model", "no_vocab");
  ExpectRefused(file, absl::StatusCode::kNotFound, "no_vocab");
}

TEST(TokenizerTest, UnknownModelsAndPreTokenisersAreNamed) {
  GgufDraft file = SmallVocabulary("smollm").File();
  for (const char* model : {"bert", "t5", "rwkv", "plamo2", "gemma4"}) {
    file.SetString("tokenizer.ggml.model", model);
    ExpectRefused(file, kUnimplemented, model);
    ExpectRefused(file, kUnimplemented, "'gpt2' or 'llama'");
  }
  ExpectRefused(SmallVocabulary("gpt-5").File(), kUnimplemented, "gpt-5");

  file = SmallVocabulary("smollm").File();
  file.Remove("tokenizer.ggml.pre");
  std::vector<std::string> warnings;
  const auto tokenizer = OpenTokenizer(file, &warnings);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->pre(), "default");
  EXPECT_THAT(warnings, Contains(HasSubstr("tokenizer.ggml.pre is missing")));
}

TEST(TokenizerTest, ContradictoryVocabulariesAreRefused) {
  const VocabularyDraft draft = SmallVocabulary("smollm");
  const size_t size = draft.tokens.size();
  struct Case {
    const char* word;
    std::function<void(GgufDraft&)> edit;
  };
  const auto with_token = [&draft](size_t index, std::string text) {
    return [&draft, index, text](GgufDraft& file) {
      std::vector<std::string> tokens = draft.tokens;
      tokens[index] = text;
      file.SetStrings(kTokens, tokens);
    };
  };
  const auto with_type = [&draft](int32_t type) {
    return [&draft, type](GgufDraft& file) {
      std::vector<int32_t> types = draft.types;
      types[7] = type;
      file.Set(kTypes, MetadataArray(types));
    };
  };
  const auto with_merge = [&draft](std::string merge) {
    return [&draft, merge](GgufDraft& file) {
      std::vector<std::string> merges = draft.merges;
      merges.push_back(merge);
      file.SetStrings(kMerges, merges);
    };
  };
  const std::vector<Case> cases = {
      {"tokens is missing", [](GgufDraft& file) { file.Remove(kTokens); }},
      {"got 0", [](GgufDraft& file) { file.SetStrings(kTokens, {}); }},
      {"got 1", [](GgufDraft& file) { file.SetStrings(kTokens, {"a"}); }},
      {"got 1048577",
       [](GgufDraft& file) {
         file.SetStrings(kTokens, std::vector<std::string>((1 << 20) + 1, "a"));
       }},
      {"tokenizer.ggml.tokens",
       [](GgufDraft& file) { file.Set(kTokens, MetadataArray(std::vector<int32_t>(300))); }},
      {"tokenizer.ggml.tokens", [](GgufDraft& file) { file.SetString(kTokens, "a"); }},
      {"one a token",
       [size](GgufDraft& file) {
         file.Set(kTypes, MetadataArray(std::vector<int32_t>(size - 1, 1)));
       }},
      {"token_type",
       [size](GgufDraft& file) { file.Set(kTypes, MetadataArray(std::vector<float>(size, 1))); }},
      {"token_type[7]: expected a type from 1 to 6, got 99", with_type(99)},
      {"token_type[7]", with_type(0)},
      {"token_type[7]", with_type(-1)},
      {"65536 bytes, got 65537", with_token(9, std::string(65'537, 'a'))},
      {"tokens[9]: expected UTF-8", with_token(9, "a\xC3(")},
      {"tokens[9]: expected no NUL", with_token(9, std::string("a\0b", 3))},
      {"merges is missing", [](GgufDraft& file) { file.Remove(kMerges); }},
      {"a space between", with_merge("hello")},
      {"a space between", with_merge("hello ")},
      {"a space between", with_merge(" ")},
      {"a space between", with_merge("")},
      {"left side", with_merge("unknown e")},
      {"right side", with_merge("e unknown")},
      {"right side", with_merge("h e l")},
      {"both together", with_merge("x y")},
      {"left side", with_merge("<|im_end|> e")},
      {"merges", [](GgufDraft& file) { file.Set(kMerges, MetadataArray(std::vector<float>(3))); }},
      {"tokenizer.ggml.pre", [](GgufDraft& file) { file.Set("tokenizer.ggml.pre", uint32_t{1}); }},
      {"chat_template", [](GgufDraft& file) { file.Set("tokenizer.chat_template", true); }},
      {"chat_template.tool_use",
       [](GgufDraft& file) { file.Set("tokenizer.chat_template.tool_use", true); }},
      {"add_bos_token",
       [](GgufDraft& file) { file.SetString("tokenizer.ggml.add_bos_token", "yes"); }},
  };
  for (const Case& one : cases) {
    GgufDraft file = draft.File();
    one.edit(file);
    SCOPED_TRACE(one.word);
    ExpectRefused(file, kInvalid, one.word);
  }
}

TEST(TokenizerTest, UnevenButUsableVocabulariesAreTaken) {
  VocabularyDraft draft = SmallVocabulary("llama-bpe");
  const TokenId first = draft.Add("twice", TokenType::kNormal);
  draft.Add("twice", TokenType::kNormal);
  const TokenId foreign = draft.Add("<\uff5cend\uff5c>", TokenType::kNormal);
  const TokenId padding = draft.Add("[PAD0]", TokenType::kUnused);
  draft.Add("", TokenType::kUnused);
  const TokenId empty = draft.Add("", TokenType::kNormal);
  draft.Add("", TokenType::kControl);
  draft.Add("", TokenType::kUserDefined);
  GgufDraft file = draft.File();
  file.Set("tokenizer.ggml.add_bos_token", false);
  file.Set(kTypes, MetadataArray(std::vector<uint8_t>(draft.types.begin(), draft.types.end())));
  std::vector<std::string> warnings;
  const auto tokenizer = OpenTokenizer(file, &warnings);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(Ids(**tokenizer, "twice", true), std::vector<TokenId>{first});
  EXPECT_EQ((*tokenizer)->TokenBytes(foreign), "<\uff5cend\uff5c>");
  EXPECT_EQ((*tokenizer)->TokenBytes(padding), "");
  EXPECT_EQ((*tokenizer)->Type(padding), TokenType::kUnused);
  EXPECT_EQ((*tokenizer)->TokenBytes(empty), "");
  EXPECT_THAT(warnings, Contains(HasSubstr("3 tokens are empty")));
  EXPECT_THAT(warnings, Contains(HasSubstr("'twice'")));
  EXPECT_THAT(warnings, Contains(HasSubstr("byte-level")));
}

TEST(TokenizerTest, ByteLevelVocabulariesNeedNoScoresOfAnyKind) {
  const VocabularyDraft draft = SmallVocabulary("tekken");
  GgufDraft file = draft.File();
  file.Set("tokenizer.ggml.add_bos_token", false);
  const std::vector<TokenId> hello = {IdOf(draft, "hello")};
  for (const MetadataValue& scores :
       {MetadataValue(MetadataArray(std::vector<int32_t>(draft.tokens.size(), 7))),
        MetadataValue(MetadataArray(std::vector<float>(3))), MetadataValue(uint32_t{1})}) {
    file.Set(kScores, scores);
    const auto tokenizer = OpenTokenizer(file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ(Ids(**tokenizer, "hello", true), hello);
  }
}

TEST(TokenizerTest, WithoutTypesEveryTokenButEndsIsText) {
  const VocabularyDraft draft = SmallVocabulary("smollm");
  GgufDraft file = draft.File();
  file.Remove(kTypes);
  std::vector<std::string> warnings;
  const auto tokenizer = OpenTokenizer(file, &warnings);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_GT(Ids(**tokenizer, "<|im_start|>", true).size(), 1u);
  // But for those that end a turn.
  EXPECT_EQ(Ids(**tokenizer, "<|im_end|>", true), std::vector<TokenId>{IdOf(draft, "<|im_end|>")});
  EXPECT_THAT(warnings, Contains(HasSubstr("token_type is missing")));
}

TEST(TokenizerTest, BosAndEosAreAddedAsTheFileAsks) {
  const VocabularyDraft draft = SmallVocabulary("smollm");
  const TokenId bos = IdOf(draft, "<|im_start|>");
  const TokenId eos = IdOf(draft, "<|im_end|>");
  const TokenId hello = IdOf(draft, "hello");
  GgufDraft file = draft.File();
  file.Set("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(bos));
  file.Set("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(eos));
  const auto ids = [&file](std::string_view text, bool add_special) {
    const auto tokenizer = OpenTokenizer(file);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return Ids(**tokenizer, text, true, add_special);
  };
  using V = std::vector<TokenId>;
  EXPECT_EQ(ids("hello", true), V{hello});
  file.Set("tokenizer.ggml.add_bos_token", true);
  file.Set("tokenizer.ggml.add_eos_token", true);
  EXPECT_EQ(ids("hello", true), (V{bos, hello, eos}));
  EXPECT_EQ(ids("hello", false), V{hello});
  EXPECT_EQ(ids("<|im_start|>hello", true), (V{bos, hello, eos}));
  EXPECT_EQ(ids("hello<|im_start|>", true), (V{bos, hello, bos, eos}));
  EXPECT_EQ(ids("", true), (V{bos, eos}));
  EXPECT_EQ(ids("<|im_start|>", true), (V{bos, eos}));
  // The name as plain text is no BOS.
  const auto tokenizer = OpenTokenizer(file);
  EXPECT_EQ(Ids(**tokenizer, "<|im_start|>", false, true).front(), bos);
  EXPECT_GT(Ids(**tokenizer, "<|im_start|>", false, true).size(), 3u);
}

TEST(TokenizerTest, SomeFamiliesAddBosUnasked) {
  const std::set<std::string_view> adding = {"llama-bpe", "llama3",  "llama-v3", "lfm2",  "falcon3",
                                             "falcon-h1", "pixtral", "midm-2.0", "tekken"};
  for (const PreTokenizerRules& rules : KnownPreTokenizerRules()) {
    GgufDraft file = SmallVocabulary(rules.name).File();
    file.Set("tokenizer.ggml.bos_token_id", uint32_t{5});
    const auto tokenizer = OpenTokenizer(file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->adds_bos(), adding.count(rules.name) != 0) << rules.name;
    EXPECT_FALSE((*tokenizer)->adds_eos());
  }
}

TEST(TokenizerTest, NeededIdsMustExistAndOthersAreIgnored) {
  const VocabularyDraft draft = SmallVocabulary("smollm");
  const GgufDraft valid = draft.File();
  const auto too_high = static_cast<uint32_t>(draft.tokens.size());
  for (const MetadataValue& wrong : {MetadataValue(int32_t{-1}), MetadataValue(too_high),
                                     MetadataValue(uint32_t{1} << 31), MetadataValue(UINT64_MAX)}) {
    GgufDraft file = valid;
    file.Set("tokenizer.ggml.eos_token_id", wrong);
    ExpectRefused(file, kInvalid, "eos_token_id");

    file = valid;
    file.Set("tokenizer.ggml.bos_token_id", wrong);
    file.Set("tokenizer.ggml.add_bos_token", true);
    ExpectRefused(file, kInvalid, "bos_token_id");

    file = valid;
    for (const char* name : {"bos", "padding", "unknown", "eot", "eom"}) {
      file.Set(std::string("tokenizer.ggml.") + name + "_token_id", wrong);
    }
    std::vector<std::string> warnings;
    const auto tokenizer = OpenTokenizer(file, &warnings);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_FALSE((*tokenizer)->bos().has_value());
    for (const char* name : {"bos", "padding", "unknown", "eot", "eom"}) {
      EXPECT_THAT(warnings, Contains(HasSubstr(std::string(name) + "_token_id"))) << name;
    }
  }
  GgufDraft file = valid;
  file.Set("tokenizer.ggml.add_bos_token", true);
  ExpectRefused(file, kInvalid, "bos_token_id is missing");
  file = valid;
  file.Set("tokenizer.ggml.add_eos_token", true);
  ExpectRefused(file, kInvalid, "eos_token_id is missing");
  std::vector<std::string> warnings;
  ASSERT_TRUE(OpenTokenizer(valid, &warnings).ok());
  EXPECT_THAT(warnings, Contains(HasSubstr("eos_token_id is missing")));
}

TEST(TokenizerTest, GenerationEndsAtEveryEndTheFileNames) {
  VocabularyDraft draft = SmallVocabulary("smollm");
  const TokenId eot_name = draft.Add("<|eot_id|>", TokenType::kControl);
  const TokenId other = draft.Add("<|im_ended|>", TokenType::kControl);
  GgufDraft file = draft.File();
  file.Set("tokenizer.ggml.eos_token_id", uint32_t{30});
  file.Set("tokenizer.ggml.eot_token_id", uint32_t{20});
  file.Set("tokenizer.ggml.eom_token_id", uint32_t{20});
  file.SetString("tokenizer.chat_template", "{{ messages }}");
  const auto tokenizer = OpenTokenizer(file);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->end_of_generation(),
            (std::vector<TokenId>{20, 30, IdOf(draft, "<|endoftext|>"), IdOf(draft, "<|im_end|>"),
                                  eot_name}));
  EXPECT_TRUE((*tokenizer)->IsEndOfGeneration(20));
  EXPECT_FALSE((*tokenizer)->IsEndOfGeneration(other));
  EXPECT_EQ((*tokenizer)->chat_template(), "{{ messages }}");
  EXPECT_EQ((*tokenizer)->model(), "gpt2");
}

TEST(TokenizerTest, TakesTheChatTemplateOfTools) {
  GgufDraft file = SmallVocabulary("smollm").File();
  file.SetString("tokenizer.chat_template.rag", "{{ documents }}");
  file.SetString("tokenizer.chat_template.tool_use", "{{ tools }}");
  auto tokenizer = OpenTokenizer(file);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->chat_template(), "");
  EXPECT_EQ((*tokenizer)->tool_use_template(), "{{ tools }}");
  EXPECT_EQ((*tokenizer)->first_template_name(), "rag");
  file.SetString("tokenizer.chat_template.default", "{{ messages }}");
  tokenizer = OpenTokenizer(file);
  EXPECT_EQ((*tokenizer)->chat_template(), "{{ messages }}");
  EXPECT_EQ((*tokenizer)->tool_use_template(), "{{ tools }}");
  file.SetString("tokenizer.chat_template", "{{ messages[0] }}");
  EXPECT_EQ((*OpenTokenizer(file))->chat_template(), "{{ messages[0] }}");
}

TEST(TokenizerTest, EndsAreFoundByName) {
  for (const char* name :
       {"<|im_end|>", "<end_of_turn>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|return|>",
        "<|call|>", "<|end|>", "<|endoftext|>", "<EOT>", "_<EOT>", "<|EOT|>"}) {
    VocabularyDraft draft;
    const TokenId id = draft.Add(name, TokenType::kControl);
    GgufDraft file = draft.File();
    file.Set("tokenizer.ggml.eos_token_id", uint32_t{1});  // as in Gemma's chat models
    const auto tokenizer = OpenTokenizer(file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->end_of_generation(), (std::vector<TokenId>{1, id})) << name;
  }
}

TEST(TokenizerTest, AnEndOfAMessageIsNoneInTheHarmonyFormat) {
  VocabularyDraft draft;
  const TokenId end = draft.Add("<|end|>", TokenType::kControl);
  const TokenId last = draft.Add("<|return|>", TokenType::kControl);
  const auto ends = [&draft] {
    const auto tokenizer = OpenTokenizer(draft.File());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return (*tokenizer)->end_of_generation();
  };
  EXPECT_EQ(ends(), (std::vector<TokenId>{end, last}));
  const TokenId call = draft.Add("<|call|>", TokenType::kControl);
  EXPECT_EQ(ends(), (std::vector<TokenId>{last, call}));
}

TEST(TokenizerTest, EndsAreControlTokensWhateverTheFileSays) {
  for (const TokenType type : {TokenType::kNormal, TokenType::kUserDefined, TokenType::kControl}) {
    VocabularyDraft draft = SmallVocabulary("smollm");
    const TokenId end = draft.Add("<|end|>", type);
    draft.AddMerge("|", ">");
    draft.AddMerge("<", "|");
    draft.AddMerge("e", "n");
    draft.AddMerge("en", "d");
    draft.AddMerge("<|", "end");
    draft.AddMerge("<|end", "|>");
    std::vector<std::string> warnings;
    const auto tokenizer = OpenTokenizer(draft.File(), &warnings);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->Type(end), TokenType::kControl);
    EXPECT_TRUE((*tokenizer)->IsEndOfGeneration(end));
    EXPECT_EQ(Ids(**tokenizer, "<|end|>", true), std::vector<TokenId>{end});
    const std::vector<TokenId> as_text = Ids(**tokenizer, "<|end|>", false);
    EXPECT_EQ(std::count(as_text.begin(), as_text.end(), end), 0);
    EXPECT_EQ(JoinBytes(**tokenizer, as_text), "<|end|>");
    const auto named = HasSubstr("1 tokens that end a turn are no control tokens");
    if (type == TokenType::kControl) {
      EXPECT_THAT(warnings, Not(Contains(named)));
    } else {
      EXPECT_THAT(warnings, Contains(named));
    }
  }
}

TEST(KeyedHashTest, DependsOnTheKeyAndOnEveryByte) {
  const KeyedHash hash({1, 2, 3});
  std::set<uint64_t> seen;
  for (size_t length = 0; length < 40; ++length) seen.insert(hash.OfBytes(std::string(length, 0)));
  for (size_t at = 0; at < 39; ++at) {
    std::string text(39, 0);
    text[at] = 1;
    EXPECT_EQ(hash.OfBytes(text), KeyedHash({1, 2, 3}).OfBytes(text));
    seen.insert(hash.OfBytes(text));
  }
  EXPECT_EQ(seen.size(), 79u);
  EXPECT_NE(hash.OfBytes("hello"), KeyedHash({2, 2, 3}).OfBytes("hello"));
  EXPECT_NE(hash.OfBytes("hello"), KeyedHash({1, 3, 3}).OfBytes("hello"));
  EXPECT_NE(hash.OfPair(5), hash.OfPair(uint64_t{5} << 32));
  EXPECT_NE(hash.OfPair(5), KeyedHash({1, 2, 4}).OfPair(5));
  // Two tables do not share a key.
  EXPECT_NE(KeyedHash().OfBytes("hello"), KeyedHash().OfBytes("hello"));
  EXPECT_NE(KeyedHash().OfPair(5), KeyedHash().OfPair(5));
}

}  // namespace
}  // namespace sluice::engine
