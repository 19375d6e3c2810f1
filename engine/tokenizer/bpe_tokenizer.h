#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/ids.h"
#include "engine/model_file/model_file.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/vocabulary.h"
#include "engine/tokenizer/vocabulary_tokenizer.h"

namespace sluice::engine {

// The merges of a BPE vocabulary: which pairs of tokens become one, and which pair goes first.
// Immutable; thread-safe.
class MergeTable {
 public:
  static constexpr uint32_t kNoRank = UINT32_MAX;
  struct Merge {
    uint32_t rank = kNoRank;  // lower goes first
    TokenId merged = Vocabulary::kNone;
  };

  // INVALID_ARGUMENT for a merge that is not two tokens with a space between, or whose sum is no
  // token. Of a pair that occurs twice the last rank holds, as in Hugging Face's map.
  static absl::StatusOr<MergeTable> FromFile(const ModelFile& file, const Vocabulary& vocabulary);

  // kNoRank when the two do not merge.
  Merge Find(TokenId left, TokenId right) const;

 private:
  struct Slot {
    uint64_t pair = kEmpty;
    Merge merge;
  };
  static constexpr uint64_t kEmpty = UINT64_MAX;

  explicit MergeTable(size_t num_merges);
  size_t SlotOf(uint64_t pair) const;
  void Insert(TokenId left, TokenId right, Merge merge);

  std::vector<Slot> slots_;  // open addressing; a power of two, at most half full
  int shift_ = 0;
};

// Byte-level BPE ("gpt2"; Sennrich et al., https://arxiv.org/abs/1508.07909, over bytes). Ids equal
// those of Hugging Face's tokenizer made of the same vocabulary. A byte that has no token gives
// none, as there: SmolLM2's vocabulary lacks 21, most of them never part of UTF-8. Immutable;
// thread-safe.
class BpeTokenizer final : public VocabularyTokenizer {
 public:
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromFile(
      const ModelFile& file, std::vector<std::string>& warnings);

 protected:
  absl::Status EncodeText(std::string_view text, std::vector<TokenId>& ids) const override;

 private:
  BpeTokenizer(Vocabulary vocabulary, TokenizerTraits traits, Matchers matchers, MergeTable merges,
               std::unique_ptr<const PreTokenizer> pre_tokenizer);

  MergeTable merges_;
  std::unique_ptr<const PreTokenizer> pre_tokenizer_;
};

}  // namespace sluice::engine
