#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/ids.h"
#include "engine/base/keyed_hash.h"
#include "engine/model_file/model_file.h"
#include "engine/tokenizer/vocabulary.h"

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
  // `spelling` is the vocabulary's.
  static absl::StatusOr<MergeTable> FromFile(const ModelFile& file, const Vocabulary& vocabulary,
                                             PieceSpelling spelling);

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

  KeyedHash hash_;
  std::vector<Slot> slots_;  // open addressing; a power of two, at most half full
  int shift_ = 0;
};

// Merges the symbols of one text after the other. The lowest rank goes first and of equal ranks the
// leftmost, which is Hugging Face's order; each merge costs one step in a heap, so that a text of a
// million symbols takes n log n. Not thread-safe: one for each caller.
class BpeMerger {
 public:
  explicit BpeMerger(const MergeTable& merges) : merges_(merges) {}

  void Clear() { symbols_.clear(); }
  void Add(TokenId id);
  // Merges what was added and appends what is left to `ids`.
  void Merge(std::vector<TokenId>& ids);

 private:
  static constexpr int32_t kEnd = -1;
  static constexpr TokenId kDead = -1;
  struct Symbol {
    TokenId id;  // kDead once merged into the one before
    int32_t previous;
    int32_t next;
  };

  static uint64_t Entry(uint32_t rank, int32_t index) {
    return static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(index);
  }
  uint32_t RankAt(int32_t index) const;
  void Push(int32_t index);
  void MergeFirst();

  const MergeTable& merges_;
  std::vector<Symbol> symbols_;
  std::vector<uint64_t> queue_;  // rank << 32 | index of the left symbol
};

}  // namespace sluice::engine
