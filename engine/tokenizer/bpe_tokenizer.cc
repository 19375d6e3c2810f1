#include "engine/tokenizer/bpe_tokenizer.h"

#include <optional>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/tokenizer/normal_form.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kPreKey = "tokenizer.ggml.pre";

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> BpeTokenizer::FromFile(
    const ModelFile& file, std::vector<std::string>& warnings) {
  ASSIGN_OR_RETURN(const std::optional<std::string_view> pre, file.GetString(kPreKey));
  if (!pre.has_value()) {
    warnings.push_back(std::string(kPreKey) +
                       " is missing, which means \"default\": token ids may differ from those the "
                       "model was trained with");
  }
  const std::string_view pre_name = pre.value_or("default");
  auto pre_tokenizer = PreTokenizer::Create(pre_name);
  if (!pre_tokenizer.ok()) return Prefix(kPreKey, pre_tokenizer.status());
  ASSIGN_OR_RETURN(Vocabulary vocabulary,
                   Vocabulary::FromFile(file, PieceSpelling::kByteLevel, warnings));
  ASSIGN_OR_RETURN(MergeTable merges,
                   MergeTable::FromFile(file, vocabulary, PieceSpelling::kByteLevel));
  ASSIGN_OR_RETURN(TokenizerTraits traits,
                   TokenizerTraits::FromFile(file, vocabulary,
                                             (*pre_tokenizer)->adds_bos_by_default(), warnings));
  traits.model = "gpt2";
  traits.pre = pre_name;
  ASSIGN_OR_RETURN(Matchers matchers,
                   Matchers::FromVocabulary(vocabulary, /*has_user_defined=*/true));
  return std::shared_ptr<const Tokenizer>(new BpeTokenizer(std::move(vocabulary), std::move(traits),
                                                           std::move(matchers), std::move(merges),
                                                           *std::move(pre_tokenizer)));
}

BpeTokenizer::BpeTokenizer(Vocabulary vocabulary, TokenizerTraits traits, Matchers matchers,
                           MergeTable merges, std::unique_ptr<const PreTokenizer> pre_tokenizer)
    : VocabularyTokenizer(std::move(vocabulary), std::move(traits), std::move(matchers)),
      merges_(std::move(merges)),
      pre_tokenizer_(std::move(pre_tokenizer)) {}

absl::Status BpeTokenizer::EncodeText(std::string_view text, bool /*is_first*/,
                                      std::vector<TokenId>& ids) const {
  std::string normalized;
  const NormalForm form = pre_tokenizer_->normal_form();
  if (!IsSurelyNormal(text, form)) {
    ASSIGN_OR_RETURN(normalized, Normalize(text, form));
    text = normalized;
  }
  std::vector<std::string_view> pieces;
  RETURN_IF_ERROR(pre_tokenizer_->Split(text, pieces));
  BpeMerger merger(merges_);
  for (const std::string_view piece : pieces) {
    if (pre_tokenizer_->ignores_merges()) {
      const TokenId whole = vocabulary().Find(piece);
      if (whole != Vocabulary::kNone) {
        ids.push_back(whole);
        continue;
      }
    }
    merger.Clear();
    for (const char byte : piece) {
      const TokenId id = vocabulary().FindByte(static_cast<uint8_t>(byte));
      if (id != Vocabulary::kNone) merger.Add(id);
    }
    merger.Merge(ids);
  }
  return absl::OkStatus();
}

}  // namespace sluice::engine
