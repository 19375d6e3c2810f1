#include "tests/engine/tokenizer/vocabulary_draft.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>

#include "engine/model_file/model_file.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::testing {
namespace {

using engine::TokenId;
using engine::TokenType;

[[noreturn]] void Abort(const std::string& context, const absl::Status& status) {
  std::fprintf(stderr, "%s: %s\n", context.c_str(), status.ToString().c_str());
  std::abort();
}

constexpr std::array<std::string_view, 30> kParts = {"the",
                                                     "hello",
                                                     "I'm",
                                                     "you'll",
                                                     "IT'S",
                                                     "Straße",
                                                     "naïve",
                                                     "e\u0301",
                                                     "東京",
                                                     "привет",
                                                     "مرحبا",
                                                     "नमस्ते",
                                                     "한국어",
                                                     "ᄒ\u1161\u11ab",
                                                     "🙂",
                                                     "👩\u200d👧",
                                                     "🇩🇪",
                                                     "1",
                                                     "2024",
                                                     "3.14",
                                                     "²½Ⅷ",
                                                     "C++",
                                                     "{}();",
                                                     "...!?",
                                                     "'ſ",
                                                     "\u1e9b\u0323",
                                                     "<|im_end|>",
                                                     "<think>",
                                                     "<|im_start|>user",
                                                     "\ufeff"};
constexpr std::array<std::string_view, 14> kSpaces = {"",       " ",      " ",      "  ",    "   ",
                                                      "\n",     "\n\n",   "\t",     "\r\n",  " \n ",
                                                      "\u00a0", "\u3000", "\u2028", "\u180e"};

}  // namespace

std::string ByteLevel(std::string_view bytes) {
  std::string spelled;
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    char32_t character = byte;
    if (byte <= 0x20) {
      character = 0x100 + byte;
    } else if (byte >= 0x7F && byte <= 0xA0) {
      character = 0x121 + (byte - 0x7F);
    } else if (byte == 0xAD) {
      character = 0x143;
    }
    engine::AppendUtf8(character, spelled);
  }
  return spelled;
}

VocabularyDraft::VocabularyDraft() {
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    Add(ByteLevel({&text, 1}), TokenType::kNormal);
  }
}

TokenId VocabularyDraft::Add(std::string_view token, TokenType type) {
  tokens.emplace_back(token);
  types.push_back(static_cast<int32_t>(type));
  return static_cast<TokenId>(tokens.size()) - 1;
}

void VocabularyDraft::AddMerge(std::string_view left, std::string_view right) {
  merges.push_back(ByteLevel(left) + " " + ByteLevel(right));
  const std::string merged = ByteLevel(std::string(left) + std::string(right));
  if (std::find(tokens.begin(), tokens.end(), merged) == tokens.end()) {
    Add(merged, TokenType::kNormal);
  }
}

GgufDraft VocabularyDraft::File() const {
  GgufDraft file;
  file.SetString("general.architecture", "llama");
  file.SetString("tokenizer.ggml.model", "gpt2");
  file.SetString("tokenizer.ggml.pre", pre);
  file.SetStrings(kTokens, tokens);
  file.Set(kTypes, engine::MetadataArray(types));
  file.SetStrings(kMerges, merges);
  return file;
}

VocabularyDraft SmallVocabulary(std::string_view pre) {
  VocabularyDraft draft;
  draft.pre = pre;
  draft.AddMerge("l", "l");
  draft.AddMerge("h", "e");
  draft.AddMerge("he", "ll");
  draft.AddMerge("hell", "o");
  draft.AddMerge(" ", "hello");
  draft.Add("<|endoftext|>", TokenType::kControl);
  draft.Add("<|im_start|>", TokenType::kControl);
  draft.Add("<|im_end|>", TokenType::kControl);
  draft.Add("<think>", TokenType::kUserDefined);
  return draft;
}

absl::StatusOr<std::shared_ptr<const engine::Tokenizer>> OpenTokenizer(
    const GgufDraft& draft, std::vector<std::string>* warnings) {
  const TempFile file(draft.Bytes());
  return OpenTokenizer(file.path(), warnings);
}

absl::StatusOr<std::shared_ptr<const engine::Tokenizer>> OpenTokenizer(
    const std::string& path, std::vector<std::string>* warnings) {
  const auto file = engine::ModelFile::Open(path);
  if (!file.ok()) Abort(path, file.status());
  return engine::Tokenizer::FromFile(**file, warnings);
}

std::vector<TokenId> Ids(const engine::Tokenizer& tokenizer, std::string_view text,
                         bool parse_special, bool add_special) {
  const auto ids =
      tokenizer.Encode(text, {.add_special = add_special, .parse_special = parse_special});
  if (!ids.ok()) Abort("Encode", ids.status());
  return *ids;
}

std::string JoinBytes(const engine::Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  std::string joined;
  for (const TokenId id : ids) joined += tokenizer.TokenBytes(id);
  return joined;
}

std::string RandomText(std::mt19937_64& random, int num_parts) {
  const auto below = [&random](size_t limit) { return static_cast<size_t>(random() % limit); };
  std::string text;
  for (int i = 0; i < num_parts; ++i) {
    if (below(3) != 0) {
      text += kParts[below(kParts.size())];
    } else {
      char32_t code_point = 0xD800;
      const size_t limit = std::array<size_t, 4>{0x80, 0x3000, 0x10000, 0x110000}[below(4)];
      while (code_point >= 0xD800 && code_point < 0xE000) {
        code_point = static_cast<char32_t>(below(limit));
      }
      engine::AppendUtf8(code_point, text);
    }
    text += kSpaces[below(kSpaces.size())];
  }
  return text;
}

}  // namespace sluice::testing
