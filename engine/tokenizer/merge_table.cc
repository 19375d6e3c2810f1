#include "engine/tokenizer/merge_table.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <string>
#include <string_view>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kMergesKey = "tokenizer.ggml.merges";
constexpr size_t kMaxMerges = size_t{1} << 22;

uint64_t PairOf(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

absl::Status BadMerge(size_t index, std::string_view merge, const std::string& problem) {
  return InvalidArgument(std::string(kMergesKey) + "[" + std::to_string(index) + "] " +
                         Quoted(merge) + ": " + problem);
}

}  // namespace

MergeTable::MergeTable(size_t num_merges)
    : slots_(std::bit_ceil(std::max<size_t>(num_merges * 2, 2))),
      shift_(64 - std::countr_zero(slots_.size())) {}

size_t MergeTable::SlotOf(uint64_t pair) const {
  size_t slot = static_cast<size_t>(hash_.OfPair(pair) >> shift_);
  while (slots_[slot].pair != kEmpty && slots_[slot].pair != pair) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slot;
}

void MergeTable::Insert(TokenId left, TokenId right, Merge merge) {
  const uint64_t pair = PairOf(left, right);
  slots_[SlotOf(pair)] = {pair, merge};
}

MergeTable::Merge MergeTable::Find(TokenId left, TokenId right) const {
  return slots_[SlotOf(PairOf(left, right))].merge;
}

absl::StatusOr<MergeTable> MergeTable::FromFile(const ModelFile& file, const Vocabulary& vocabulary,
                                                PieceSpelling spelling) {
  ASSIGN_OR_RETURN(const std::vector<std::string>* merges, file.GetStrings(kMergesKey));
  if (merges == nullptr) {
    return InvalidArgument(std::string(kMergesKey) + " is missing, a \"gpt2\" vocabulary needs it");
  }
  if (merges->size() > kMaxMerges) {
    return InvalidArgument(std::string(kMergesKey) + ": expected at most " +
                           std::to_string(kMaxMerges) + " merges, got " +
                           std::to_string(merges->size()));
  }
  MergeTable table(merges->size());
  std::string bytes;
  for (size_t i = 0; i < merges->size(); ++i) {
    const std::string_view merge = (*merges)[i];
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      return BadMerge(i, merge, "expected two tokens with a space between");
    }
    const std::string_view left = merge.substr(0, space);
    const std::string_view right = merge.substr(space + 1);
    bytes.clear();
    AppendSpelled(left, spelling, bytes);
    const size_t num_left = bytes.size();
    AppendSpelled(right, spelling, bytes);
    const std::string_view merged = bytes;
    const TokenId left_id = vocabulary.Find(merged.substr(0, num_left));
    const TokenId right_id = vocabulary.Find(merged.substr(num_left));
    const TokenId merged_id = vocabulary.Find(merged);
    if (left_id == Vocabulary::kNone) return BadMerge(i, merge, "the left side is no token");
    if (right_id == Vocabulary::kNone) return BadMerge(i, merge, "the right side is no token");
    // Such a token is a control token, which text never becomes.
    if (merged_id == Vocabulary::kNone && IsEndName(merged)) continue;
    if (merged_id == Vocabulary::kNone) return BadMerge(i, merge, "both together are no token");
    table.Insert(left_id, right_id, {static_cast<uint32_t>(i), merged_id});
  }
  return table;
}

void BpeMerger::Add(TokenId id) {
  const auto index = static_cast<int32_t>(symbols_.size());
  symbols_.push_back({id, index - 1, index + 1});
}

void BpeMerger::Merge(std::vector<TokenId>& ids) {
  if (symbols_.empty()) return;
  symbols_.back().next = kEnd;
  queue_.clear();
  for (int32_t i = 0; symbols_[i].next != kEnd; ++i) {
    const uint32_t rank = RankAt(i);
    if (rank != MergeTable::kNoRank) queue_.push_back(Entry(rank, i));
  }
  std::make_heap(queue_.begin(), queue_.end(), std::greater<>());
  while (!queue_.empty()) MergeFirst();
  for (int32_t i = 0; i != kEnd; i = symbols_[i].next) ids.push_back(symbols_[i].id);
}

uint32_t BpeMerger::RankAt(int32_t index) const {
  return merges_.Find(symbols_[index].id, symbols_[symbols_[index].next].id).rank;
}

void BpeMerger::Push(int32_t index) {
  const uint32_t rank = RankAt(index);
  if (rank == MergeTable::kNoRank) return;
  queue_.push_back(Entry(rank, index));
  std::push_heap(queue_.begin(), queue_.end(), std::greater<>());
}

void BpeMerger::MergeFirst() {
  const uint64_t first = queue_.front();
  std::pop_heap(queue_.begin(), queue_.end(), std::greater<>());
  queue_.pop_back();
  const auto index = static_cast<int32_t>(first & UINT32_MAX);
  Symbol& left = symbols_[index];
  if (left.id == kDead || left.next == kEnd) return;
  Symbol& right = symbols_[left.next];
  const MergeTable::Merge merge = merges_.Find(left.id, right.id);
  // One of the two has changed since the entry was made; the new pair has an entry of its own.
  if (merge.rank != first >> 32) return;
  left.id = merge.merged;
  right.id = kDead;
  left.next = right.next;
  if (left.next != kEnd) symbols_[left.next].previous = index;
  if (left.previous != kEnd) Push(left.previous);
  if (left.next != kEnd) Push(index);
}

}  // namespace sluice::engine
