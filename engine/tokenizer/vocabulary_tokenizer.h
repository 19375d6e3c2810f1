#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/ids.h"
#include "engine/model_file/model_file.h"
#include "engine/tokenizer/token_matcher.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/vocabulary.h"

namespace sluice::engine {

// What a file says about its vocabulary besides the pieces.
struct TokenizerTraits {
  std::string model;
  std::string pre;
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
  bool adds_bos = false;
  bool adds_eos = false;
  std::vector<TokenId> end_of_generation;  // ascending
  std::string chat_template;
  std::string tool_use_template;
  std::string first_template_name;

  // INVALID_ARGUMENT when bos or eos is needed but missing or out of range.
  static absl::StatusOr<TokenizerTraits> FromFile(const ModelFile& file,
                                                  const Vocabulary& vocabulary,
                                                  bool adds_bos_by_default,
                                                  std::vector<std::string>& warnings);
};

// What tokenizers of every model share: tokens by id, added tokens recognised in text, BOS and EOS.
// Derived classes encode the text between added tokens.
//
// Added tokens are found in the text as it is, from the left and the longest first. The flags that
// they have in Hugging Face (normalized, lstrip, rstrip, single_word) do not exist in GGUF and are
// taken for false. Immutable; thread-safe.
class VocabularyTokenizer : public Tokenizer {
 public:
  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text,
                                              const EncodeOptions& options) const final;
  absl::StatusOr<std::vector<TokenId>> EncodeChat(const MarkedText& text,
                                                  const EncodeOptions& options) const final;
  std::string_view TokenBytes(TokenId id) const final { return vocabulary_.Bytes(id); }
  TokenType Type(TokenId id) const final { return vocabulary_.Type(id); }

 protected:
  // The tokens that cut a text apart before it is encoded.
  struct Matchers {
    TokenMatcher special;  // where control tokens in the text become their ids
    TokenMatcher plain;    // where they are text

    // `has_user_defined`: both hold the user-defined tokens; otherwise those of
    // SentencePiece's own model are left to EncodeText.
    static absl::StatusOr<Matchers> FromVocabulary(const Vocabulary& vocabulary,
                                                   bool has_user_defined);
  };

  VocabularyTokenizer(Vocabulary vocabulary, TokenizerTraits traits, Matchers matchers);

  // Appends the ids of `text`, which is valid UTF-8, not empty and holds no token of the matcher.
  // `is_first`: the whole text begins with it.
  virtual absl::Status EncodeText(std::string_view text, bool is_first,
                                  std::vector<TokenId>& ids) const = 0;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  // The ids of `matches` and of the text between them, after BOS when asked for.
  absl::StatusOr<std::vector<TokenId>> EncodeAround(std::string_view text,
                                                    const std::vector<TokenMatcher::Match>& matches,
                                                    bool add_bos) const;

  Vocabulary vocabulary_;
  Matchers matchers_;
};

}  // namespace sluice::engine
