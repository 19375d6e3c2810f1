#include "engine/tokenizer/spm_tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <utility>

#include "engine/base/status.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, how pieces spell a space

// Joins the characters of one text. Each join costs one step in a heap; the order is
// SentencePiece's: the highest score, of equal scores the leftmost. Not thread-safe: one for each
// text.
class Joiner {
 public:
  struct Symbol {
    uint32_t begin;
    uint32_t size;  // 0 once joined to the one before
    TokenId id;     // kNone: a character that is no piece
    int32_t previous;
    int32_t next;
  };
  static constexpr int32_t kEnd = -1;

  Joiner(const Vocabulary& vocabulary, std::string_view text)
      : vocabulary_(vocabulary), text_(text) {
    for (uint32_t begin = 0; begin < text.size();) {
      const uint32_t size = NextUtf8(text.substr(begin)).length;
      const auto index = static_cast<int32_t>(symbols_.size());
      symbols_.push_back(
          {begin, size, vocabulary.Find(text.substr(begin, size)), index - 1, index + 1});
      begin += size;
    }
    symbols_.back().next = kEnd;
  }

  // Appends the pieces to `ids`; `fallback` gets the characters that are none.
  template <typename Fallback>
  void Join(std::vector<TokenId>& ids, const Fallback& fallback) {
    for (int32_t i = 0; symbols_[i].next != kEnd; ++i) Push(i);
    while (!queue_.empty()) JoinFirst();
    for (int32_t i = 0; i != kEnd; i = symbols_[i].next) {
      const Symbol& symbol = symbols_[i];
      const std::string_view piece = text_.substr(symbol.begin, symbol.size);
      if (symbol.id == Vocabulary::kNone) {
        fallback(piece);
      } else if (vocabulary_.Type(symbol.id) == TokenType::kUnused) {
        TakeApart(piece, ids, fallback);
      } else {
        ids.push_back(symbol.id);
      }
    }
  }

 private:
  struct Entry {
    float score;
    int32_t index;  // of the left symbol
    uint32_t size;  // of both
    TokenId joined;
  };
  // Heap order: the first is the one that no other goes before.
  static bool GoesAfter(const Entry& a, const Entry& b) {
    if (a.score != b.score) return a.score < b.score;
    return a.index > b.index;
  }

  void Push(int32_t index) {
    const Symbol& left = symbols_[index];
    const uint32_t size = left.size + symbols_[left.next].size;
    const TokenId joined = vocabulary_.Find(text_.substr(left.begin, size));
    if (joined == Vocabulary::kNone) return;
    if (vocabulary_.Type(joined) == TokenType::kUnused) unused_left_size_[joined] = left.size;
    queue_.push_back({vocabulary_.scores()[joined], index, size, joined});
    std::push_heap(queue_.begin(), queue_.end(), GoesAfter);
  }

  void JoinFirst() {
    const Entry first = queue_.front();
    std::pop_heap(queue_.begin(), queue_.end(), GoesAfter);
    queue_.pop_back();
    Symbol& left = symbols_[first.index];
    if (left.size == 0 || left.next == kEnd) return;
    Symbol& right = symbols_[left.next];
    // One of the two has grown since; the new pair has an entry of its own.
    if (left.size + right.size != first.size) return;
    left.size = first.size;
    left.id = first.joined;
    right.size = 0;
    left.next = right.next;
    if (left.next != kEnd) symbols_[left.next].previous = first.index;
    if (left.previous != kEnd) Push(left.previous);
    if (left.next != kEnd) Push(first.index);
  }

  // Unused pieces take part in joining but are never given out: their halves are.
  template <typename Fallback>
  void TakeApart(std::string_view piece, std::vector<TokenId>& ids, const Fallback& fallback) {
    std::vector<std::string_view> parts = {piece};
    while (!parts.empty()) {
      const std::string_view part = parts.back();
      parts.pop_back();
      const TokenId id = vocabulary_.Find(part);
      const auto halves = unused_left_size_.find(id);
      if (id == Vocabulary::kNone) {
        fallback(part);
      } else if (vocabulary_.Type(id) != TokenType::kUnused || halves == unused_left_size_.end()) {
        ids.push_back(id);
      } else {
        parts.push_back(part.substr(halves->second));
        parts.push_back(part.substr(0, halves->second));
      }
    }
  }

  const Vocabulary& vocabulary_;
  std::string_view text_;
  std::vector<Symbol> symbols_;
  std::vector<Entry> queue_;
  std::unordered_map<TokenId, uint32_t> unused_left_size_;  // where an unused piece was joined last
};

// SentencePiece's normaliser is the identity in every model of the family; a file that asks for
// more would silently get other ids.
absl::Status CheckNormalizer(const ModelFile& file) {
  static constexpr std::string_view kSpacesKey = "tokenizer.ggml.remove_extra_whitespaces";
  static constexpr std::string_view kCharsMapKey = "tokenizer.ggml.precompiled_charsmap";
  ASSIGN_OR_RETURN(const auto removes_spaces, file.GetBool(kSpacesKey));
  if (removes_spaces.value_or(false)) {
    return Unimplemented(std::string(kSpacesKey) + " is true: expected false or nothing");
  }
  if (file.Find(kCharsMapKey) != nullptr) {
    return Unimplemented(std::string(kCharsMapKey) + " is present: expected a vocabulary without");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> SpmTokenizer::FromFile(
    const ModelFile& file, std::vector<std::string>& warnings) {
  RETURN_IF_ERROR(CheckNormalizer(file));
  ASSIGN_OR_RETURN(Vocabulary vocabulary,
                   Vocabulary::FromFile(file, PieceSpelling::kSentencePiece, warnings));
  if (vocabulary.scores().empty()) {
    return InvalidArgument("tokenizer.ggml.scores is missing, a \"llama\" vocabulary needs it");
  }
  ASSIGN_OR_RETURN(TokenizerTraits traits,
                   TokenizerTraits::FromFile(file, vocabulary, true, warnings));
  traits.model = "llama";
  ASSIGN_OR_RETURN(const auto adds_space, file.GetBool("tokenizer.ggml.add_space_prefix"));
  ASSIGN_OR_RETURN(Matchers matchers,
                   Matchers::FromVocabulary(vocabulary, /*has_user_defined=*/false));
  std::vector<TokenMatcher::Token> user_defined;
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.Type(id) != TokenType::kUserDefined || vocabulary.Bytes(id).empty()) continue;
    if (vocabulary.IsAddedToPieces(id)) continue;
    user_defined.push_back({vocabulary.Bytes(id), id});
  }
  ASSIGN_OR_RETURN(TokenMatcher matcher, TokenMatcher::Create(std::move(user_defined)));
  return std::shared_ptr<const Tokenizer>(new SpmTokenizer(std::move(vocabulary), std::move(traits),
                                                           std::move(matchers), std::move(matcher),
                                                           adds_space.value_or(true)));
}

SpmTokenizer::SpmTokenizer(Vocabulary vocabulary, TokenizerTraits traits, Matchers matchers,
                           TokenMatcher user_defined, bool adds_space)
    : VocabularyTokenizer(std::move(vocabulary), std::move(traits), std::move(matchers)),
      user_defined_(std::move(user_defined)),
      adds_space_(adds_space) {
  for (TokenId id = vocab_size() - 1; id >= 0; --id) {
    if (Type(id) == TokenType::kUnknown) unknown_ = id;
  }
}

void SpmTokenizer::AppendFallback(std::string_view character, size_t begin,
                                  std::vector<TokenId>& ids) const {
  if (character == " ") character = kSpaceMark;
  const bool has_bytes = std::all_of(character.begin(), character.end(), [this](char byte) {
    return vocabulary().FindByte(static_cast<uint8_t>(byte)) != Vocabulary::kNone;
  });
  if (has_bytes) {
    for (const char byte : character) {
      ids.push_back(vocabulary().FindByte(static_cast<uint8_t>(byte)));
    }
    return;
  }
  // One for a run of unknown characters, as SentencePiece gives it.
  const bool follows_unknown = ids.size() > begin && ids.back() == unknown_;
  if (unknown_ != Vocabulary::kNone && !follows_unknown) ids.push_back(unknown_);
}

void SpmTokenizer::AppendJoined(std::string_view text, size_t begin,
                                std::vector<TokenId>& ids) const {
  if (text.empty()) return;
  Joiner(vocabulary(), text).Join(ids, [this, begin, &ids](std::string_view character) {
    AppendFallback(character, begin, ids);
  });
}

absl::Status SpmTokenizer::EncodeText(std::string_view text, bool /*is_first*/,
                                      std::vector<TokenId>& ids) const {
  // Inside, a space is a space, and the mark that pieces spell it with is one too.
  std::string spaced;
  spaced.reserve(text.size() + 1);
  if (adds_space_) spaced += ' ';
  for (size_t begin = 0; begin < text.size();) {
    const size_t mark = std::min(text.find(kSpaceMark, begin), text.size());
    spaced += text.substr(begin, mark - begin);
    if (mark != text.size()) spaced += ' ';
    begin = mark + kSpaceMark.size();
  }
  const std::string_view whole = spaced;
  const size_t num_before = ids.size();
  size_t begin = 0;
  for (const TokenMatcher::Match& match : user_defined_.FindAll(whole)) {
    AppendJoined(whole.substr(begin, match.begin - begin), num_before, ids);
    ids.push_back(match.id);
    begin = match.begin + match.size;
  }
  AppendJoined(whole.substr(begin), num_before, ids);
  return absl::OkStatus();
}

}  // namespace sluice::engine
