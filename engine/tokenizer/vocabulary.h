#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/ids.h"
#include "engine/base/keyed_hash.h"
#include "engine/model_file/model_file.h"
#include "engine/tokenizer/tokenizer.h"

namespace sluice::engine {

// How the pieces of a vocabulary spell bytes.
enum class PieceSpelling : uint8_t {
  kByteLevel,     // GPT-2's: one printable character a byte
  kSentencePiece  // plain text with U+2581 for a space, and <0xNN> for single bytes
};

// Whether `name` is that of a token that ends a turn or a text in a family whose files name only
// one end, or store it as something else than a control token.
bool IsEndName(std::string_view name);

// The tokens of a GGUF file as byte strings, with their types and scores, and the way back from
// bytes to id. Immutable; thread-safe.
class Vocabulary {
 public:
  static constexpr TokenId kNone = -1;

  // INVALID_ARGUMENT naming key and index for what contradicts itself. What Hugging Face tolerates
  // (two tokens of one spelling, empty ones, pieces that are not byte-level) becomes a warning.
  // A normal or user-defined token with a name of IsEndName is taken for a control token, with a
  // warning: text that is not trusted would become it, and generation would go on after it.
  static absl::StatusOr<Vocabulary> FromFile(const ModelFile& file, PieceSpelling spelling,
                                             std::vector<std::string>& warnings);

  int32_t size() const { return static_cast<int32_t>(types_.size()); }
  // Names of control tokens, text of all others; none for unused ones of byte-level vocabularies,
  // whose names converters make up.
  std::string_view Bytes(TokenId id) const {
    return std::string_view(bytes_.data() + begins_[id], begins_[id + 1] - begins_[id]);
  }
  TokenType Type(TokenId id) const { return types_[id]; }
  // User-defined, but not of SentencePiece's own model: converters mark what tokenizer_config.json
  // or added_tokens.json adds to it with the score -1000.
  bool IsAddedToPieces(TokenId id) const {
    return types_[id] == TokenType::kUserDefined && !scores_.empty() && scores_[id] == -1000.0F;
  }
  std::span<const float> scores() const { return scores_; }  // [size()], or none

  // The token that ordinary text spelled `bytes` may become: never a control token. Of several with
  // one spelling the lowest id, normal ones before user-defined ones. kNone when there is none.
  TokenId Find(std::string_view bytes) const;
  // The token that stands for one byte: for SentencePiece one of type kByte.
  TokenId FindByte(uint8_t byte) const { return byte_tokens_[byte]; }

 private:
  class Builder;

  std::string bytes_;             // of all tokens, one after the other
  std::vector<uint32_t> begins_;  // [size() + 1] into bytes_
  std::vector<TokenType> types_;  // [size()]
  std::vector<float> scores_;     // [size()] or none
  KeyedHash hash_;
  std::vector<TokenId> slots_;  // open addressing by hash of the bytes; a power of two, half full
  std::array<TokenId, 256> byte_tokens_;
};

// Appends the bytes that a byte-level `piece` spells. False, and `out` as it was, when a character
// of it stands for no byte.
bool AppendByteLevel(std::string_view piece, std::string& out);
// Appends the text of a normal `piece`; of a byte-level one that stands for no bytes, itself.
void AppendSpelled(std::string_view piece, PieceSpelling spelling, std::string& out);

}  // namespace sluice::engine
