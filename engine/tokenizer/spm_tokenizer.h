#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/ids.h"
#include "engine/model_file/model_file.h"
#include "engine/tokenizer/vocabulary.h"
#include "engine/tokenizer/vocabulary_tokenizer.h"

namespace sluice::engine {

// SentencePiece BPE ("llama"; Kudo and Richardson, https://arxiv.org/abs/1808.06226): the two
// neighbours whose sum is the piece of the highest score become one, until no sum is a piece. A
// character that is no piece becomes the tokens of its bytes, or else the unknown token.
//
// The file's add_space_prefix puts a space before the text, and before the text after each control
// token; not after user-defined tokens, which to SentencePiece are part of the text. Immutable;
// thread-safe.
class SpmTokenizer final : public VocabularyTokenizer {
 public:
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromFile(
      const ModelFile& file, std::vector<std::string>& warnings);

  bool RemovesLeadingSpace() const override { return adds_space_; }

 protected:
  absl::Status EncodeText(std::string_view text, bool after_user_defined,
                          std::vector<TokenId>& ids) const override;

 private:
  SpmTokenizer(Vocabulary vocabulary, TokenizerTraits traits, Matchers matchers, bool adds_space);

  void AppendFallback(std::string_view character, std::vector<TokenId>& ids) const;

  bool adds_space_;
  TokenId unknown_ = Vocabulary::kNone;
};

}  // namespace sluice::engine
