#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/ids.h"
#include "engine/model_file/model_file.h"
#include "engine/tokenizer/token_matcher.h"
#include "engine/tokenizer/vocabulary.h"
#include "engine/tokenizer/vocabulary_tokenizer.h"

namespace sluice::engine {

// SentencePiece BPE ("llama"; Kudo and Richardson, https://arxiv.org/abs/1808.06226): the two
// neighbours whose sum is the piece of the highest score become one, until no sum is a piece. A
// character that is no piece becomes the tokens of its bytes, or else the unknown token.
//
// Ids equal those of the `sentencepiece` library with the normaliser "identity" and without
// remove_extra_whitespaces, which is what the family's models have (Llama, Mistral, Phi-3, Gemma);
// a file that asks for another is refused. The file's add_space_prefix puts a space before the
// text, and, as SentencePiece knows no control tokens in text, before the text after each of those.
// User-defined tokens are parts of the text: they are found after that space has come, the longest
// one first, and join with nothing. Those that were added to SentencePiece's model (score -1000)
// are none of its business: they cut the text as control tokens do, as in Hugging Face. Immutable;
// thread-safe.
class SpmTokenizer final : public VocabularyTokenizer {
 public:
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromFile(
      const ModelFile& file, std::vector<std::string>& warnings);

  bool RemovesLeadingSpace() const override { return adds_space_; }

 protected:
  absl::Status EncodeText(std::string_view text, bool is_first,
                          std::vector<TokenId>& ids) const override;

 private:
  SpmTokenizer(Vocabulary vocabulary, TokenizerTraits traits, Matchers matchers,
               TokenMatcher user_defined, bool adds_space);

  // Appends what `text`, which holds no user-defined token, is joined to. ids[begin] is the first
  // of the text that it is a part of.
  void AppendJoined(std::string_view text, size_t begin, std::vector<TokenId>& ids) const;
  void AppendFallback(std::string_view character, size_t begin, std::vector<TokenId>& ids) const;

  TokenMatcher user_defined_;
  bool adds_space_;
  TokenId unknown_ = Vocabulary::kNone;
};

}  // namespace sluice::engine
