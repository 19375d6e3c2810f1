#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/ids.h"
#include "engine/model_file/model_file.h"
#include "engine/tokenizer/merge_table.h"
#include "engine/tokenizer/vocabulary.h"
#include "engine/tokenizer/vocabulary_tokenizer.h"

namespace sluice::engine {

// BPE over characters ("piece-bpe"): what Hugging Face makes of SentencePiece's models, with merges
// instead of scores. Ids equal those of Hugging Face's tokenizer; SpmTokenizer's would differ where
// two merges of one piece have other ranks than their places in the text. A space is U+2581, and a
// character that is no token becomes the tokens of its bytes. No GGUF file has it: it comes from a
// directory's tokenizer.json (ReadTokenizerFacts).
//
// tokenizer.ggml.space_prefix says where a space is put before text: "none", "each" (every piece of
// text between added tokens), "each-unspaced" (every one that does not begin with a space) or
// "first-unspaced" (only at the beginning of the whole text). Immutable; thread-safe.
class PieceBpeTokenizer final : public VocabularyTokenizer {
 public:
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromFile(
      const ModelFile& file, std::vector<std::string>& warnings);

  bool RemovesLeadingSpace() const override { return prefix_ != SpacePrefix::kNone; }

 protected:
  absl::Status EncodeText(std::string_view text, bool is_first,
                          std::vector<TokenId>& ids) const override;

 private:
  enum class SpacePrefix : uint8_t { kNone, kEach, kEachUnspaced, kFirstUnspaced };

  PieceBpeTokenizer(Vocabulary vocabulary, TokenizerTraits traits, Matchers matchers,
                    MergeTable merges, SpacePrefix prefix);
  static absl::StatusOr<SpacePrefix> ReadPrefix(const ModelFile& file);
  bool AddsSpace(std::string_view text, bool is_first) const;

  MergeTable merges_;
  SpacePrefix prefix_;
};

}  // namespace sluice::engine
