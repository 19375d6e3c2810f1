#pragma once

#include <span>
#include <vector>

#include "engine/base/ids.h"
#include "engine/kv/page_pool.h"
#include "engine/kv/page_size.h"

namespace sluice::engine {

// The pages of one sequence, in order of position, each with a reference of its own. Returns them
// in its destructor. Owned by the sequence; engine thread only. The pool outlives it.
class PageTable {
 public:
  explicit PageTable(PagePool* pool) : pool_(pool) {}
  ~PageTable() { Clear(); }
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  // Takes pages until positions [0, positions) are covered. False, and nothing taken, when the pool
  // has too few.
  bool Cover(int positions);
  bool Covers(int positions) const { return PagesFor(positions) <= num_pages(); }
  // Appends a page that is full and that others may name as well.
  void Share(PageId page);
  // Names `page`, of equal content, in the place of page `index`, and gives that one, with its
  // reference, to the caller.
  PageId Replace(int index, PageId page);
  // Returns all pages.
  void Clear();

  int num_pages() const { return static_cast<int>(pages_.size()); }
  PageId page(int index) const { return pages_[static_cast<size_t>(index)]; }
  std::span<const PageId> pages() const { return pages_; }
  // Pages of positions [0, positions).
  std::span<const PageId> Pages(int positions) const {
    return pages().first(static_cast<size_t>(PagesFor(positions)));
  }

 private:
  PagePool* pool_;
  std::vector<PageId> pages_;
};

}  // namespace sluice::engine
