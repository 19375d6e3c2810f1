#include "engine/tokenizer/piece_bpe_tokenizer.h"

#include <optional>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kPrefixKey = "tokenizer.ggml.space_prefix";
constexpr std::string_view kSpaceOfPieces = "\xE2\x96\x81";  // U+2581

}  // namespace

absl::StatusOr<PieceBpeTokenizer::SpacePrefix> PieceBpeTokenizer::ReadPrefix(
    const ModelFile& file) {
  ASSIGN_OR_RETURN(const std::optional<std::string_view> prefix, file.GetString(kPrefixKey));
  const std::string_view name = prefix.value_or("");
  if (name == "none") return SpacePrefix::kNone;
  if (name == "each") return SpacePrefix::kEach;
  if (name == "each-unspaced") return SpacePrefix::kEachUnspaced;
  if (name == "first-unspaced") return SpacePrefix::kFirstUnspaced;
  return InvalidArgument(std::string(kPrefixKey) +
                         ": expected 'none', 'each', 'each-unspaced' or 'first-unspaced', got " +
                         Quoted(name));
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> PieceBpeTokenizer::FromFile(
    const ModelFile& file, std::vector<std::string>& warnings) {
  ASSIGN_OR_RETURN(const SpacePrefix prefix, ReadPrefix(file));
  ASSIGN_OR_RETURN(Vocabulary vocabulary,
                   Vocabulary::FromFile(file, PieceSpelling::kSentencePiece, warnings));
  for (int byte = 0; byte < 256; ++byte) {
    if (vocabulary.FindByte(static_cast<uint8_t>(byte)) != Vocabulary::kNone) continue;
    return InvalidArgument("tokenizer.ggml.tokens: expected a token for each byte, got none for " +
                           std::to_string(byte));
  }
  ASSIGN_OR_RETURN(MergeTable merges,
                   MergeTable::FromFile(file, vocabulary, PieceSpelling::kSentencePiece));
  ASSIGN_OR_RETURN(TokenizerTraits traits,
                   TokenizerTraits::FromFile(file, vocabulary, false, warnings));
  traits.model = "piece-bpe";
  ASSIGN_OR_RETURN(Matchers matchers,
                   Matchers::FromVocabulary(vocabulary, /*has_user_defined=*/true));
  return std::shared_ptr<const Tokenizer>(new PieceBpeTokenizer(
      std::move(vocabulary), std::move(traits), std::move(matchers), std::move(merges), prefix));
}

PieceBpeTokenizer::PieceBpeTokenizer(Vocabulary vocabulary, TokenizerTraits traits,
                                     Matchers matchers, MergeTable merges, SpacePrefix prefix)
    : VocabularyTokenizer(std::move(vocabulary), std::move(traits), std::move(matchers)),
      merges_(std::move(merges)),
      prefix_(prefix) {}

bool PieceBpeTokenizer::AddsSpace(std::string_view text, bool is_first) const {
  const bool is_spaced = text.starts_with(' ') || text.starts_with(kSpaceOfPieces);
  switch (prefix_) {
    case SpacePrefix::kNone:
      return false;
    case SpacePrefix::kEach:
      return true;
    case SpacePrefix::kEachUnspaced:
      return !is_spaced;
    case SpacePrefix::kFirstUnspaced:
      return is_first && !is_spaced;
  }
  return false;
}

absl::Status PieceBpeTokenizer::EncodeText(std::string_view text, bool is_first,
                                           std::vector<TokenId>& ids) const {
  // The vocabulary spells U+2581 as the space that it stands for.
  BpeMerger merger(merges_);
  const auto add = [&](std::string_view character) {
    const TokenId id = vocabulary().Find(character);
    if (id != Vocabulary::kNone) {
      merger.Add(id);
      return;
    }
    if (character == " ") character = kSpaceOfPieces;
    for (const char byte : character) {
      merger.Add(vocabulary().FindByte(static_cast<uint8_t>(byte)));
    }
  };
  if (AddsSpace(text, is_first)) add(" ");
  for (size_t begin = 0; begin < text.size();) {
    const std::string_view character = text.substr(begin, NextUtf8(text.substr(begin)).length);
    add(character == kSpaceOfPieces ? " " : character);
    begin += character.size();
  }
  merger.Merge(ids);
  return absl::OkStatus();
}

}  // namespace sluice::engine
