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
#include "engine/tokenizer/merge_table.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/vocabulary.h"
#include "engine/tokenizer/vocabulary_tokenizer.h"

namespace sluice::engine {

// Byte-level BPE ("gpt2"; Sennrich et al., https://arxiv.org/abs/1508.07909, over bytes). Ids equal
// those of Hugging Face's tokenizer made of the same vocabulary. A byte that has no token gives
// none, as there: SmolLM2's vocabulary lacks 21, most of them never part of UTF-8. Immutable;
// thread-safe.
class BpeTokenizer final : public VocabularyTokenizer {
 public:
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromFile(
      const ModelFile& file, std::vector<std::string>& warnings);

 protected:
  absl::Status EncodeText(std::string_view text, bool is_first,
                          std::vector<TokenId>& ids) const override;

 private:
  BpeTokenizer(Vocabulary vocabulary, TokenizerTraits traits, Matchers matchers, MergeTable merges,
               std::unique_ptr<const PreTokenizer> pre_tokenizer);

  MergeTable merges_;
  std::unique_ptr<const PreTokenizer> pre_tokenizer_;
};

}  // namespace sluice::engine
