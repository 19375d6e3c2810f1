#include "engine/tokenizer/vocabulary.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kTokensKey = "tokenizer.ggml.tokens";
constexpr std::string_view kTypesKey = "tokenizer.ggml.token_type";
constexpr std::string_view kScoresKey = "tokenizer.ggml.scores";

constexpr size_t kMinTokens = 2;
constexpr size_t kMaxTokens = size_t{1} << 20;
constexpr size_t kMaxPieceBytes = size_t{64} << 10;

constexpr std::string_view kSentencePieceSpace = "\xE2\x96\x81";  // U+2581

// GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and up, in order.
constexpr size_t kByteLevelEnd = 0x144;
constexpr std::array<int16_t, kByteLevelEnd> MakeByteLevelTable() {
  std::array<int16_t, kByteLevelEnd> byte_of{};
  for (int16_t& entry : byte_of) entry = -1;
  size_t next = 0x100;
  for (int16_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    byte_of[printable ? static_cast<size_t>(byte) : next++] = byte;
  }
  return byte_of;
}
constexpr std::array<int16_t, kByteLevelEnd> kByteOfCharacter = MakeByteLevelTable();
static_assert(kByteOfCharacter[kByteLevelEnd - 1] == 0xAD);

std::string Indexed(std::string_view key, size_t index) {
  return std::string(key) + "[" + std::to_string(index) + "]";
}

// "<0xNN>" to NN.
std::optional<uint8_t> ParseByteToken(std::string_view piece) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
  };
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return std::nullopt;
  const int high = digit(piece[3]);
  const int low = digit(piece[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high << 4 | low);
}

void AppendWithSpaces(std::string_view piece, std::string& out) {
  while (!piece.empty()) {
    const size_t at = piece.find(kSentencePieceSpace);
    out += piece.substr(0, at);
    if (at == std::string_view::npos) return;
    out += ' ';
    piece.remove_prefix(at + kSentencePieceSpace.size());
  }
}

// Of the chat formats of ChatML, Gemma, Granite, Llama 3, OpenAI's harmony, Phi 3 and GPT-2, and of
// CodeLlama's and DeepSeek Coder's code. ("_<EOT>" is how llama.cpp knows CodeLlama's.)
constexpr std::array<std::string_view, 12> kEndNames = {
    "<|im_end|>", "<end_of_turn>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|return|>",
    "<|call|>",   "<|end|>",       "<|endoftext|>",   "<EOT>",      "_<EOT>",     "<|EOT|>"};

}  // namespace

bool IsEndName(std::string_view name) {
  return std::find(kEndNames.begin(), kEndNames.end(), name) != kEndNames.end();
}

bool AppendByteLevel(std::string_view piece, std::string& out) {
  const size_t size_before = out.size();
  for (size_t offset = 0; offset < piece.size();) {
    const Utf8Step step = NextUtf8(piece.substr(offset));
    const bool known = step.state == Utf8State::kValid && step.code_point < kByteLevelEnd &&
                       kByteOfCharacter[step.code_point] >= 0;
    if (!known) {
      out.resize(size_before);
      return false;
    }
    out += static_cast<char>(kByteOfCharacter[step.code_point]);
    offset += step.length;
  }
  return true;
}

void AppendSpelled(std::string_view piece, PieceSpelling spelling, std::string& out) {
  if (spelling == PieceSpelling::kSentencePiece) {
    AppendWithSpaces(piece, out);
  } else if (!AppendByteLevel(piece, out)) {
    out += piece;
  }
}

// Fills a Vocabulary from the file's arrays, one check after the other.
class Vocabulary::Builder {
 public:
  Builder(PieceSpelling spelling, std::vector<std::string>& warnings)
      : spelling_(spelling), warnings_(warnings) {}

  absl::StatusOr<Vocabulary> Build(const ModelFile& file) {
    ASSIGN_OR_RETURN(const std::vector<std::string>* pieces, file.GetStrings(kTokensKey));
    if (pieces == nullptr) return InvalidArgument(std::string(kTokensKey) + " is missing");
    if (pieces->size() < kMinTokens || pieces->size() > kMaxTokens) {
      return InvalidArgument(std::string(kTokensKey) + ": expected " + std::to_string(kMinTokens) +
                             " to " + std::to_string(kMaxTokens) + " tokens, got " +
                             std::to_string(pieces->size()));
    }
    RETURN_IF_ERROR(ReadTypes(file, pieces->size()));
    RETURN_IF_ERROR(ReadScores(file, pieces->size()));
    MakeEndsControl(*pieces);
    RETURN_IF_ERROR(ReadPieces(*pieces));
    Index();
    return std::move(vocabulary_);
  }

 private:
  absl::Status ReadTypes(const ModelFile& file, size_t num_tokens) {
    ASSIGN_OR_RETURN(const auto types, file.GetInts(kTypesKey));
    if (!types.has_value()) {
      warnings_.push_back(std::string(kTypesKey) + " is missing: every token is taken for text");
      vocabulary_.types_.assign(num_tokens, TokenType::kNormal);
      return absl::OkStatus();
    }
    if (types->size() != num_tokens) {
      return InvalidArgument(std::string(kTypesKey) + ": expected " + std::to_string(num_tokens) +
                             " types, one a token, got " + std::to_string(types->size()));
    }
    vocabulary_.types_.reserve(num_tokens);
    for (size_t i = 0; i < num_tokens; ++i) {
      const int64_t type = (*types)[i];
      if (type < static_cast<int64_t>(TokenType::kNormal) ||
          type > static_cast<int64_t>(TokenType::kByte)) {
        return InvalidArgument(Indexed(kTypesKey, i) + ": expected a type from 1 to 6, got " +
                               std::to_string(type));
      }
      vocabulary_.types_.push_back(static_cast<TokenType>(type));
    }
    return absl::OkStatus();
  }

  absl::Status ReadScores(const ModelFile& file, size_t num_tokens) {
    // Merges, not scores, order a byte-level vocabulary; converters write what they like there.
    if (spelling_ == PieceSpelling::kByteLevel || file.Find(kScoresKey) == nullptr) {
      return absl::OkStatus();
    }
    std::vector<float> scores;
    if (const auto integers = file.GetInts(kScoresKey); integers.ok()) {
      scores.assign((*integers)->begin(), (*integers)->end());
    } else {
      ASSIGN_OR_RETURN(const std::vector<float>* floats, file.GetFloats(kScoresKey));
      scores = *floats;
    }
    if (scores.size() != num_tokens) {
      return InvalidArgument(std::string(kScoresKey) + ": expected " + std::to_string(num_tokens) +
                             " scores, one a token, got " + std::to_string(scores.size()));
    }
    const auto nan =
        std::find_if(scores.begin(), scores.end(), [](float score) { return std::isnan(score); });
    if (nan != scores.end()) {
      return InvalidArgument(Indexed(kScoresKey, static_cast<size_t>(nan - scores.begin())) +
                             ": expected a number, got NaN");
    }
    vocabulary_.scores_ = std::move(scores);
    return absl::OkStatus();
  }

  void MakeEndsControl(const std::vector<std::string>& pieces) {
    size_t num_ends = 0;
    size_t first_end = 0;
    for (size_t i = 0; i < pieces.size(); ++i) {
      TokenType& type = vocabulary_.types_[i];
      if (type != TokenType::kNormal && type != TokenType::kUserDefined) continue;
      if (!IsEndName(pieces[i])) continue;
      type = TokenType::kControl;
      if (num_ends++ == 0) first_end = i;
    }
    if (num_ends == 0) return;
    warnings_.push_back(std::to_string(num_ends) +
                        " tokens that end a turn are no control tokens in the file and taken for "
                        "such, the first one " +
                        Indexed(kTokensKey, first_end) + " " + Quoted(pieces[first_end]));
  }

  absl::Status ReadPieces(const std::vector<std::string>& pieces) {
    size_t num_bytes = 0;
    for (const std::string& piece : pieces) num_bytes += piece.size();
    if (num_bytes > std::numeric_limits<uint32_t>::max()) {
      return InvalidArgument(std::string(kTokensKey) + ": expected less than 4 GiB of text");
    }
    vocabulary_.bytes_.reserve(num_bytes);
    vocabulary_.begins_.reserve(pieces.size() + 1);
    vocabulary_.begins_.push_back(0);
    vocabulary_.byte_tokens_.fill(kNone);
    for (size_t i = 0; i < pieces.size(); ++i) {
      RETURN_IF_ERROR(CheckPiece(pieces[i], i));
      if (pieces[i].empty() && vocabulary_.types_[i] != TokenType::kUnused && num_empty_++ == 0) {
        first_empty_ = i;
      }
      RETURN_IF_ERROR(AppendPiece(pieces[i], i));
      vocabulary_.begins_.push_back(static_cast<uint32_t>(vocabulary_.bytes_.size()));
    }
    if (num_empty_ != 0) {
      warnings_.push_back(std::to_string(num_empty_) +
                          " tokens are empty and never made from text, the first one " +
                          Indexed(kTokensKey, first_empty_));
    }
    if (num_foreign_ != 0) {
      warnings_.push_back(std::to_string(num_foreign_) +
                          " tokens are not spelled in byte-level characters and are taken as they "
                          "are, the first one " +
                          Indexed(kTokensKey, first_foreign_) + " " +
                          Quoted(pieces[first_foreign_]));
    }
    return absl::OkStatus();
  }

  absl::Status CheckPiece(std::string_view piece, size_t index) const {
    if (piece.size() > kMaxPieceBytes) {
      return InvalidArgument(Indexed(kTokensKey, index) + ": expected at most " +
                             std::to_string(kMaxPieceBytes) + " bytes, got " +
                             std::to_string(piece.size()));
    }
    if (const size_t at = FindInvalidUtf8(piece); at != std::string_view::npos) {
      return InvalidArgument(Indexed(kTokensKey, index) + ": expected UTF-8, got " + Quoted(piece) +
                             ", wrong from byte " + std::to_string(at));
    }
    if (piece.find('\0') != std::string_view::npos) {
      return InvalidArgument(Indexed(kTokensKey, index) + ": expected no NUL, got " +
                             Quoted(piece));
    }
    return absl::OkStatus();
  }

  absl::Status AppendPiece(std::string_view piece, size_t index) {
    std::string& out = vocabulary_.bytes_;
    const TokenType type = vocabulary_.types_[index];
    if (spelling_ == PieceSpelling::kByteLevel) {
      if (type == TokenType::kUnused) return absl::OkStatus();
      const bool is_spelled = type == TokenType::kNormal || type == TokenType::kByte;
      if (is_spelled && AppendByteLevel(piece, out)) return absl::OkStatus();
      if (is_spelled && num_foreign_++ == 0) first_foreign_ = index;
      out += piece;
      return absl::OkStatus();
    }
    if (type == TokenType::kByte) {
      const std::optional<uint8_t> byte = ParseByteToken(piece);
      if (!byte.has_value()) {
        return InvalidArgument(Indexed(kTokensKey, index) +
                               ": expected a byte token from <0x00> to <0xFF>, got " +
                               Quoted(piece));
      }
      TokenId& token = vocabulary_.byte_tokens_[*byte];
      if (token == kNone) token = static_cast<TokenId>(index);
      out += static_cast<char>(*byte);
    } else if (type == TokenType::kControl || type == TokenType::kUnknown) {
      out += piece;
    } else {
      AppendWithSpaces(piece, out);
    }
    return absl::OkStatus();
  }

  void Index() {
    const size_t num_slots = std::bit_ceil(vocabulary_.types_.size() * 2);
    vocabulary_.slots_.assign(num_slots, kNone);
    AddToIndex(TokenType::kNormal);
    if (spelling_ == PieceSpelling::kByteLevel) AddToIndex(TokenType::kByte);
    AddToIndex(TokenType::kUserDefined);
    if (spelling_ == PieceSpelling::kSentencePiece) AddToIndex(TokenType::kUnused);
    if (num_duplicates_ != 0) {
      warnings_.push_back(std::to_string(num_duplicates_) +
                          " tokens are spelled like one before them and never made from text, the "
                          "first one " +
                          Indexed(kTokensKey, static_cast<size_t>(first_duplicate_)) + " " +
                          Quoted(vocabulary_.Bytes(first_duplicate_)));
    }
    if (spelling_ != PieceSpelling::kByteLevel) return;
    for (int byte = 0; byte < 256; ++byte) {
      const char text = static_cast<char>(byte);
      vocabulary_.byte_tokens_[byte] = vocabulary_.Find(std::string_view(&text, 1));
    }
  }

  void AddToIndex(TokenType type) {
    std::vector<TokenId>& slots = vocabulary_.slots_;
    for (TokenId id = 0; id < vocabulary_.size(); ++id) {
      if (vocabulary_.types_[id] != type || vocabulary_.Bytes(id).empty()) continue;
      const std::string_view bytes = vocabulary_.Bytes(id);
      size_t slot = vocabulary_.hash_.OfBytes(bytes) & (slots.size() - 1);
      while (slots[slot] != kNone && vocabulary_.Bytes(slots[slot]) != bytes) {
        slot = (slot + 1) & (slots.size() - 1);
      }
      if (slots[slot] == kNone) {
        slots[slot] = id;
      } else if (vocabulary_.types_[slots[slot]] == type && num_duplicates_++ == 0) {
        first_duplicate_ = id;
      }
    }
  }

  PieceSpelling spelling_;
  std::vector<std::string>& warnings_;
  Vocabulary vocabulary_;
  size_t num_empty_ = 0;
  size_t first_empty_ = 0;
  size_t num_foreign_ = 0;
  size_t first_foreign_ = 0;
  size_t num_duplicates_ = 0;
  TokenId first_duplicate_ = kNone;
};

absl::StatusOr<Vocabulary> Vocabulary::FromFile(const ModelFile& file, PieceSpelling spelling,
                                                std::vector<std::string>& warnings) {
  return Builder(spelling, warnings).Build(file);
}

TokenId Vocabulary::Find(std::string_view bytes) const {
  size_t slot = hash_.OfBytes(bytes) & (slots_.size() - 1);
  while (slots_[slot] != kNone && Bytes(slots_[slot]) != bytes) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slots_[slot];
}

}  // namespace sluice::engine
