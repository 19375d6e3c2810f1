#pragma once

#include <span>
#include <vector>

#include "engine/base/ids.h"
#include "engine/kv/page_allocator.h"

namespace sluice::engine {

// Positions that a page of the KV pool holds.
inline constexpr int kPageTokens = 16;

constexpr int PagesFor(int positions) { return (positions + kPageTokens - 1) / kPageTokens; }

// The pages of one sequence, in order of position. Returns them in its destructor. Owned by the
// sequence; engine thread only. The allocator outlives it.
class PageTable {
 public:
  explicit PageTable(PageAllocator* allocator) : allocator_(allocator) {}
  ~PageTable() { Clear(); }
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  // Takes pages until positions [0, positions) are covered. False, and nothing taken, when the pool
  // has too few.
  bool Cover(int positions);
  bool Covers(int positions) const { return PagesFor(positions) <= num_pages(); }
  // Returns all pages.
  void Clear();

  int num_pages() const { return static_cast<int>(pages_.size()); }
  // Pages of positions [0, positions).
  std::span<const PageId> Pages(int positions) const {
    return std::span(pages_).first(static_cast<size_t>(PagesFor(positions)));
  }

 private:
  PageAllocator* allocator_;
  std::vector<PageId> pages_;
};

}  // namespace sluice::engine
