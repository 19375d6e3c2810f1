// tokenizer.json as a vocabulary: ids against Hugging Face tokenizers, and what is refused.

#include "engine/safetensors/tokenizer_facts.h"

#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/model/model_config.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/engine/safetensors/model_directory.h"
#include "tests/testing/tally.h"

namespace sluice::engine {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using testing::ModelDirectory;

absl::StatusOr<std::shared_ptr<const Tokenizer>> OpenTokenizer(
    const ModelDirectory& directory, std::vector<std::string>* warnings = nullptr) {
  ASSIGN_OR_RETURN(const auto file, ModelFile::Open(directory.path()));
  RETURN_IF_ERROR(ModelConfig::FromFile(*file).status());
  return Tokenizer::FromFile(*file, warnings);
}

// Those that have a tokenizer.
json GoldenModels() {
  std::ifstream stream(std::string(SLUICE_GOLDEN_DIR) + "/safetensors/manifest.json");
  json models = json::array();
  for (const json& model : json::parse(stream)) {
    if (!model["texts"].empty()) models.push_back(model);
  }
  return models;
}

TEST(TokenizerFactsTest, GivesTheIdsOfHuggingFace) {
  int num_texts = 0;
  for (const json& model : GoldenModels()) {
    testing::Tally tally({"tokenizers/tokenizer.json of " + model["directory"].get<std::string>()},
                         "golden texts");
    const ModelDirectory directory(model["directory"].get<std::string>());
    std::vector<std::string> warnings;
    const auto tokenizer = OpenTokenizer(directory, &warnings);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_THAT(warnings, ::testing::IsEmpty());
    for (const json& row : model["texts"]) {
      const std::string text = row["text"];
      const auto bare = (*tokenizer)->Encode(text, {.add_special = false});
      ASSERT_TRUE(bare.ok()) << bare.status();
      EXPECT_TRUE(tally.Add(*bare == row["ids_bare"].get<std::vector<TokenId>>()))
          << directory.path() << text;
      const auto ids = (*tokenizer)->Encode(text, {});
      ASSERT_TRUE(ids.ok()) << ids.status();
      auto expected = row["ids"].get<std::vector<TokenId>>();
      // A text that begins with BOS does not get another one here.
      if (expected.size() > 1 && expected[0] == expected[1] && expected[0] == (*tokenizer)->bos()) {
        expected.erase(expected.begin());
      }
      EXPECT_TRUE(tally.Add(*ids == expected)) << directory.path() << text;
      ++num_texts;
    }
  }
  EXPECT_GT(num_texts, 4 * 100);
}

// The tokens of a text spell it, but for a space put before it.
TEST(TokenizerFactsTest, DecodesWhatItEncodes) {
  for (const json& model : GoldenModels()) {
    const ModelDirectory directory(model["directory"].get<std::string>());
    const auto tokenizer = OpenTokenizer(directory);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::string text = "The License, 日本 é 🙂\n  twice";
    const auto ids = (*tokenizer)->Encode(text, {.add_special = false});
    ASSERT_TRUE(ids.ok());
    std::string decoded;
    for (const TokenId id : *ids) decoded += (*tokenizer)->TokenBytes(id);
    if ((*tokenizer)->RemovesLeadingSpace()) {
      ASSERT_TRUE(decoded.starts_with(' '));
      decoded.erase(0, 1);
    }
    EXPECT_EQ(decoded, text) << directory.path();
  }
}

void Edit(const ModelDirectory& directory, const json& edit) {
  json tokenizer = directory.ReadJson("tokenizer.json");
  for (const auto& [key, value] : edit.items()) {
    if (key == "model") {
      tokenizer["model"].update(value);
    } else {
      tokenizer[key] = value;
    }
  }
  directory.WriteJson("tokenizer.json", tokenizer);
}

TEST(TokenizerFactsTest, KnowsThePipelinesOfOtherFamilies) {
  int num_variants = 0;
  for (const json& model : GoldenModels()) {
    for (const json& variant : model["variants"]) {
      const auto name = variant["name"].get<std::string>();
      SCOPED_TRACE(name);
      testing::Tally tally({"tokenizers/tokenizer.json of other families"},
                           "golden texts, " + model["directory"].get<std::string>() + name);
      const ModelDirectory directory(model["directory"].get<std::string>());
      Edit(directory, variant["edit"]);
      const auto tokenizer = OpenTokenizer(directory);
      ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
      if ((*tokenizer)->model() == "gpt2") {
        EXPECT_EQ((*tokenizer)->pre(), name);
      }
      for (size_t i = 0; i < model["texts"].size(); ++i) {
        const std::string text = model["texts"][i]["text"];
        const auto ids = (*tokenizer)->Encode(text, {.add_special = false});
        ASSERT_TRUE(ids.ok()) << ids.status();
        EXPECT_TRUE(tally.Add(*ids == variant["ids"][i].get<std::vector<TokenId>>())) << text;
      }
      ++num_variants;
    }
  }
  EXPECT_EQ(num_variants, 12);
}

TEST(TokenizerFactsTest, EndsGenerationsWhereTheModelSays) {
  const ModelDirectory directory("llama3");
  const auto tokenizer = OpenTokenizer(directory);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 383);
  EXPECT_EQ((*tokenizer)->bos(), 380);
  EXPECT_EQ((*tokenizer)->eos(), 381);
  EXPECT_TRUE((*tokenizer)->adds_bos());
  EXPECT_FALSE((*tokenizer)->adds_eos());
  EXPECT_THAT((*tokenizer)->end_of_generation(), ::testing::ElementsAre(381, 382));
  EXPECT_EQ((*tokenizer)->Type(380), TokenType::kControl);
  EXPECT_EQ((*tokenizer)->Type(382), TokenType::kUserDefined);
}

TEST(TokenizerFactsTest, FindsSpecialTokensInTheOrderOfTheFiles) {
  const ModelDirectory directory("qwen2");
  json tokenizer_config = directory.ReadJson("tokenizer_config.json");
  tokenizer_config["eos_token"] = {{"content", "<|bos|>"}, {"lstrip", false}};
  directory.WriteJson("tokenizer_config.json", tokenizer_config);
  EXPECT_EQ((*OpenTokenizer(directory))->eos(), 380);
  directory.Remove("tokenizer_config.json");
  directory.WriteJson("special_tokens_map.json", {{"eos_token", "<|end|>"}});
  EXPECT_EQ((*OpenTokenizer(directory))->eos(), 381);
  directory.Remove("special_tokens_map.json");
  directory.WriteJson("generation_config.json", {{"eos_token_id", 380}});
  EXPECT_EQ((*OpenTokenizer(directory))->eos(), 380);
  directory.Remove("generation_config.json");
  json config = directory.ReadJson("config.json");
  config["eos_token_id"] = 382;
  directory.WriteJson("config.json", config);
  EXPECT_EQ((*OpenTokenizer(directory))->eos(), 382);
}

TEST(TokenizerFactsTest, TakesTheChatTemplate) {
  const ModelDirectory directory("qwen2");
  json config = directory.ReadJson("tokenizer_config.json");
  config["chat_template"] = "{{ one }}";
  directory.WriteJson("tokenizer_config.json", config);
  EXPECT_EQ((*OpenTokenizer(directory))->chat_template(), "{{ one }}");
  config["chat_template"] = {{{"name", "tool_use"}, {"template", "{{ two }}"}},
                             {{"name", "default"}, {"template", "{{ three }}"}}};
  directory.WriteJson("tokenizer_config.json", config);
  EXPECT_EQ((*OpenTokenizer(directory))->chat_template(), "{{ three }}");
  EXPECT_EQ((*OpenTokenizer(directory))->tool_use_template(), "{{ two }}");
  directory.Write("chat_template.jinja", "{{ four }}");
  EXPECT_EQ((*OpenTokenizer(directory))->chat_template(), "{{ four }}");
  EXPECT_EQ((*OpenTokenizer(directory))->tool_use_template(), "");
  directory.Write("additional_chat_templates/tool_use.jinja", "{{ five }}");
  EXPECT_EQ((*OpenTokenizer(directory))->chat_template(), "{{ four }}");
  EXPECT_EQ((*OpenTokenizer(directory))->tool_use_template(), "{{ five }}");
}

TEST(TokenizerFactsTest, TakesChatTemplatesByNameAsConvertersWriteThem) {
  const ModelDirectory directory("qwen2");
  json config = directory.ReadJson("tokenizer_config.json");
  config["chat_template"] = {{{"name", "rag/2"}, {"template", "{{ one }}"}},
                             {{"name", "tool_use"}, {"template", "{{ two }}"}},
                             {{"name", "rag-2"}, {"template", "{{ last }}"}},
                             {{"name", "without"}},
                             {{"name", ""}, {"template", "{{ nameless }}"}}};
  directory.WriteJson("tokenizer_config.json", config);
  const auto file = ModelFile::Open(directory.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->Find("tokenizer.chat_template"), nullptr);
  EXPECT_EQ(**(*file)->GetString("tokenizer.chat_template.rag_2"), "{{ last }}");
  EXPECT_THAT(**(*file)->GetStrings("tokenizer.chat_templates"),
              ::testing::ElementsAre("rag_2", "tool_use"));
  EXPECT_EQ((*OpenTokenizer(directory))->chat_template(), "");
  EXPECT_EQ((*OpenTokenizer(directory))->tool_use_template(), "{{ two }}");
  EXPECT_EQ((*OpenTokenizer(directory))->first_template_name(), "rag_2");
}

TEST(TokenizerFactsTest, RefusesAChatTemplateThatIsNoText) {
  const ModelDirectory directory("qwen2");
  json config = directory.ReadJson("tokenizer_config.json");
  config["chat_template"] = 7;
  directory.WriteJson("tokenizer_config.json", config);
  const auto tokenizer = OpenTokenizer(directory);
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(tokenizer.status()),
              HasSubstr("'chat_template': expected a string, got an integer"));
  config["chat_template"] = {{{"name", "tool_use"}, {"template", 7}}};
  directory.WriteJson("tokenizer_config.json", config);
  EXPECT_THAT(Message(OpenTokenizer(directory).status()),
              HasSubstr("'chat_template': expected a string, got an integer"));
}

TEST(TokenizerFactsTest, DoesWithoutATokenizer) {
  const ModelDirectory directory("qwen2");
  directory.Remove("tokenizer.json");
  EXPECT_EQ(OpenTokenizer(directory).status().code(), absl::StatusCode::kNotFound);
}

struct TokenizerCase {
  const char* name;
  std::string golden;
  std::function<void(json&)> edit;  // of tokenizer.json
  std::vector<std::string> says;
  absl::StatusCode code = absl::StatusCode::kUnimplemented;
};
void PrintTo(const TokenizerCase& c, std::ostream* out) { *out << c.name; }

class TokenizerFactsErrorTest : public ::testing::TestWithParam<TokenizerCase> {};

TEST_P(TokenizerFactsErrorTest, IsRefusedWithTheReason) {
  const TokenizerCase& c = GetParam();
  const ModelDirectory directory(c.golden);
  ASSERT_TRUE(OpenTokenizer(directory).ok());
  json tokenizer = directory.ReadJson("tokenizer.json");
  c.edit(tokenizer);
  directory.WriteJson("tokenizer.json", tokenizer);
  const absl::Status status = OpenTokenizer(directory).status();
  EXPECT_EQ(status.code(), c.code) << Message(status);
  EXPECT_THAT(Message(status), ::testing::StartsWith(directory.path()));
  for (const std::string& text : c.says) EXPECT_THAT(Message(status), HasSubstr(text));
}

std::vector<TokenizerCase> TokenizerCases() {
  constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
  const auto set = [](const char* pointer, json value) {
    return [=](json& tokenizer) { tokenizer[json::json_pointer(pointer)] = value; };
  };
  return {
      {"Unigram", "llama3", set("/model/type", "Unigram"), {"'model'", "'BPE'", "Unigram"}},
      {"NoModel", "llama3", [](json& t) { t.erase("model"); }, {"'model'", "got null"}},
      {"Dropout", "llama3", set("/model/dropout", 0.1), {"'model'", "'dropout'", "0.1"}},
      {"EndOfWord",
       "llama3",
       set("/model/end_of_word_suffix", "</w>"),
       {"'end_of_word_suffix'", "</w>"}},
      {"UnknownOption", "llama3", set("/model/vibe", true), {"'vibe'", "got true"}},
      {"UnknownToken", "llama3", set("/model/unk_token", "<|end|>"), {"'unk_token'"}},
      {"OtherNormalizer",
       "llama3",
       set("/normalizer", {{"type", "Lowercase"}}),
       {"'normalizer'", R"({"type":"Lowercase"})"}},
      {"NormalizerOfAnotherFamily",
       "llama3",
       set("/normalizer", {{"type", "NFC"}}),
       {"'pre_tokenizer'", "no family", "NFC", "p{N}{1,3}"}},
      {"OtherRegex",
       "llama3",
       set("/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\s+"),
       {"'pre_tokenizer'", R"(\\s+)"}},
      {"OtherBehavior",
       "llama3",
       set("/pre_tokenizer/pretokenizers/0/behavior", "Removed"),
       {"'pre_tokenizer'", "Removed"}},
      {"Inverted",
       "llama3",
       set("/pre_tokenizer/pretokenizers/0/invert", true),
       {"'pre_tokenizer'", "\"invert\":true"}},
      {"PrefixSpace",
       "llama3",
       set("/pre_tokenizer/pretokenizers/1/add_prefix_space", true),
       {"'pre_tokenizer'", "\"add_prefix_space\":true"}},
      {"NoPreTokenizer", "llama3", set("/pre_tokenizer", nullptr), {"'pre_tokenizer'"}},
      {"OtherDecoder", "llama3", set("/decoder", {{"type", "WordPiece"}}), {"'decoder'"}},
      {"IgnoreMergesOfAnotherFamily",
       "qwen2",
       set("/model/ignore_merges", true),
       {"ignore_merges true"}},
      {"PiecesThatIgnoreMerges", "mistral", set("/model/ignore_merges", true), {"'ignore_merges'"}},
      {"PiecesWithAnotherDecoder",
       "mistral",
       [](json& t) { t["decoder"]["decoders"].erase(3); },
       {"'decoder'"}},
      {"PiecesWithAnotherPreTokenizer",
       "mistral",
       set("/pre_tokenizer", {{"type", "Whitespace"}}),
       {"'pre_tokenizer'", "Whitespace"}},
      {"MetaspaceThatSplits",
       "qwen3",
       set("/pre_tokenizer/split", true),
       {"'pre_tokenizer'", "\"split\":true"}},
      {"ByteMissing",
       "mistral",
       [](json& t) {
         t["model"]["vocab"]["<0x4G>"] = t["model"]["vocab"]["<0x41>"];
         t["model"]["vocab"].erase("<0x41>");
       },
       {"'byte_fallback'", "got 255"}},
      {"SpaceInAPiece",
       "mistral",
       [](json& t) { t["model"]["vocab"]["a b"] = 420; },
       {"'a b'", "U+2581"}},
      {"MarkInAnAddedToken",
       "mistral",
       [](json& t) {
         t["added_tokens"].push_back({{"id", 420}, {"content", "▁▁"}, {"special", false}});
       },
       {"'added_tokens'", "U+2581"}},
      {"NormalizedAddedToken",
       "mistral",
       set("/added_tokens/0/normalized", true),
       {"'<unk>'", "normalized"}},
      {"StripsSpaces",
       "llama3",
       set("/added_tokens/1/rstrip", true),
       {"'added_tokens'", "'<|end|>'", "rstrip", "true"}},
      {"SingleWord",
       "llama3",
       set("/added_tokens/1/single_word", true),
       {"'<|end|>'", "single_word"}},
      {"OtherPostProcessor",
       "llama3",
       set("/post_processor", {{"type", "BertProcessing"}}),
       {"'post_processor'", "BertProcessing"}},
      {"TwoTokensBefore",
       "llama3",
       [](json& t) {
         json& single = t["post_processor"]["single"];
         single.insert(single.begin(), single[0]);
       },
       {"'post_processor'", "only one known token"}},
      {"TemplateWithAnotherBos",
       "llama3",
       [](json& t) { t["post_processor"]["single"][0]["SpecialToken"]["id"] = "<|end|>"; },
       {"'post_processor'", "bos token, id 380 (tokenizer_config.json)", "got id 381"}},
      {"NoVocabulary",
       "llama3",
       [](json& t) { t["model"].erase("vocab"); },
       {"'model'", "'vocab'"},
       kInvalid},
      {"IdTwice", "llama3", set("/model/vocab/Ġthe", 5), {"an id of its own", "got 5"}, kInvalid},
      {"NegativeId", "llama3", set("/model/vocab/Ġthe", -1), {"expected an id", "-1"}, kInvalid},
      {"HugeId",
       "llama3",
       set("/model/vocab/Ġthe", 4000000000),
       {"expected an id", "4000000000"},
       kInvalid},
      {"IdAsText", "llama3", set("/model/vocab/Ġthe", "7"), {"expected an id"}, kInvalid},
      {"AddedTokenWithoutContent",
       "llama3",
       [](json& t) { t["added_tokens"][0].erase("content"); },
       {"'added_tokens'", "with a content"},
       kInvalid},
      {"AddedTokenOverAnother",
       "llama3",
       set("/added_tokens/0/id", 7),
       {"'added_tokens'", "'<|bos|>'", "got 7"},
       kInvalid},
      {"MoreTokensThanRows",
       "llama3",
       [](json& t) {
         t["added_tokens"].push_back({{"id", 390}, {"content", "<more>"}, {"special", true}});
       },
       {"token_embd.weight", "391"},
       kInvalid},
      {"MergesAsText",
       "llama3",
       set("/model/merges", "a b"),
       {"'merges'", "expected an array"},
       kInvalid},
      {"MergeOfThree",
       "llama3",
       set("/model/merges/3", json::array({"a", "b", "c"})),
       {"'merges'", "element 3"},
       kInvalid},
      {"MergeWithASpace", "mistral", set("/model/merges/3", "a b c"), {"element 3"}, kInvalid},
      {"MergeOfStrangers",
       "llama3",
       set("/model/merges/3", json::array({"zq", "qz"})),
       {"tokenizer.ggml.merges[3]", "is no token"},
       kInvalid},
  };
}

INSTANTIATE_TEST_SUITE_P(Cases, TokenizerFactsErrorTest, ::testing::ValuesIn(TokenizerCases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(TokenizerFactsTest, RefusesSpecialTokensThatAreNone) {
  const ModelDirectory directory("llama3");
  json config = directory.ReadJson("tokenizer_config.json");
  config["eos_token"] = "<|nowhere|>";
  directory.WriteJson("tokenizer_config.json", config);
  absl::Status status = OpenTokenizer(directory).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("tokenizer_config.json: key 'eos_token'"));
  EXPECT_THAT(Message(status), HasSubstr("<|nowhere|>"));
  directory.Remove("tokenizer_config.json");
  directory.WriteJson("generation_config.json", {{"eos_token_id", {381, 383}}});
  status = OpenTokenizer(directory).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("generation_config.json: key 'eos_token_id'"));
  EXPECT_THAT(Message(status), HasSubstr("below 383, got 383"));
}

}  // namespace
}  // namespace sluice::engine
