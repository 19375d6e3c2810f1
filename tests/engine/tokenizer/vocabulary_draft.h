#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/ids.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::testing {

inline constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
inline constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
inline constexpr std::string_view kScores = "tokenizer.ggml.scores";
inline constexpr std::string_view kMerges = "tokenizer.ggml.merges";

// `bytes` as GPT-2's vocabulary spells them.
std::string ByteLevel(std::string_view bytes);

// A byte-level vocabulary under construction: token N is byte N for N < 256. Value.
struct VocabularyDraft {
  std::string pre = "smollm";
  std::vector<std::string> tokens;  // as stored
  std::vector<int32_t> types;
  std::vector<std::string> merges;

  VocabularyDraft();
  engine::TokenId Add(std::string_view token, engine::TokenType type);
  // A merge of two texts, and the token it makes when there is none yet.
  void AddMerge(std::string_view left, std::string_view right);
  GgufDraft File() const;
};

// 256 bytes, the merges of "hello" and " hello" and four added tokens: <|endoftext|>, <|im_start|>
// and <|im_end|> (BOS and EOS) are control tokens, <think> is user-defined.
VocabularyDraft SmallVocabulary(std::string_view pre);

// Writes, opens and reads. Aborts when the file itself cannot be opened.
absl::StatusOr<std::shared_ptr<const engine::Tokenizer>> OpenTokenizer(
    const GgufDraft& draft, std::vector<std::string>* warnings = nullptr);
absl::StatusOr<std::shared_ptr<const engine::Tokenizer>> OpenTokenizer(
    const std::string& path, std::vector<std::string>* warnings = nullptr);

// What `tokenizer` gives for text that is UTF-8; aborts for other text.
std::vector<engine::TokenId> Ids(const engine::Tokenizer& tokenizer, std::string_view text,
                                 bool parse_special, bool add_special = false);
// All bytes of `ids`, control tokens by name.
std::string JoinBytes(const engine::Tokenizer& tokenizer, const std::vector<engine::TokenId>& ids);

// Words of many scripts, spaces of all kinds, marks, emoji and code points drawn evenly; one in
// four texts holds an added token's name.
std::string RandomText(std::mt19937_64& random, int num_parts);

}  // namespace sluice::testing
